"""SOCI as an arm of bench pull: Debian's snapshotter, and the index that it needs of an image."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import tarfile
from typing import TYPE_CHECKING

from fleetfoot import artifacts
from fleetfoot.errors import FleetfootError
from fleetfoot.images import build
from fleetfoot.paths import cache_dir

if TYPE_CHECKING:
    from collections.abc import Callable

    from fleetfoot.bench.puller import Node
    from fleetfoot.lazyfs.distribution import Access

__all__ = ["CONFIG", "START", "STOP", "index", "install"]

_PROGRAMS = ("soci", "soci-snapshotter-grpc")
_FOLDER, _ROOT = "/opt/soci", "/var/lib/soci-snapshotter-grpc"
#: What containerd's configuration has besides that of another arm.
CONFIG = """
[proxy_plugins.soci]
type = 'snapshot'
address = '/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock'
[proxy_plugins.soci.exports]
root = '/var/lib/soci-snapshotter-grpc'
enable_remote_snapshot_annotations = 'true'
[plugins.'io.containerd.cri.v1.images']
snapshotter = 'soci'
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
platform = 'linux/amd64'
snapshotter = 'soci'
"""
#: The shell's commands that forget all of it, and that start it.
STOP = f"""
systemctl stop soci 2>/dev/null || :
sed -n 's|^[^ ]* \\({_ROOT}/[^ ]*\\) .*|\\1|p' /proc/mounts | tac | xargs --no-run-if-empty umount
rm -rf {_ROOT}
"""
START = f"""
mkdir -p {_ROOT}
grep --quiet '^fuse ' /proc/modules || insmod {_FOLDER}/fuse.ko*
systemd-run --quiet --unit=soci --service-type=notify --setenv=HOME=/root \\
  --setenv=SSL_CERT_FILE={_FOLDER}/ca.crt {_FOLDER}/soci-snapshotter-grpc
"""
# Without a credential in its arguments, which others could read.
_INDEX = """
set -e
export HOME=/root SSL_CERT_FILE={folder}/ca.crt
ctr --namespace=k8s.io content fetch --hosts-dir=/etc/containerd/certs.d {image} > /dev/null
{folder}/soci --namespace=k8s.io create {image}
{folder}/soci --namespace=k8s.io push --quiet {image}
"""


def install(node: Node, access: Access, registry: str, progress: Callable[[str], None]) -> None:
    """Put its programs on a node, and what they need to reach the registry.

    Args:
        node: The node.
        access: How the registry is reached by whoever pushes: indexes are pushed from the node.
        registry: `host:port` by which the node knows it.
        progress: Takes one line at a time for a person to follow.

    Raises:
        FleetfootError: They cannot be built, or do not reach the node.
    """
    built = build.build(
        "soci", cache=cache_dir(), artifacts=artifacts.directory(), progress=progress
    )
    docker = {"auths": {registry: {"auth": access.authorization().removeprefix("Basic ")}}}
    authority = access.authority.read_text() if access.authority else ""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in _PROGRAMS:
            archive.add(built.path / "usr/bin" / name, f"{_FOLDER[1:]}/{name}")
        for module in built.path.glob("usr/lib/modules/*/kernel/fs/fuse/fuse.ko*"):
            archive.add(module, f"{_FOLDER[1:]}/{module.name}")
        for name, content in (
            (f"{_FOLDER[1:]}/ca.crt", authority),
            ("root/.docker/config.json", json.dumps(docker)),
        ):
            member = tarfile.TarInfo(name)
            member.mode, member.size = 0o600, len(content.encode())
            archive.addfile(member, io.BytesIO(content.encode()))
    unpack = node.command("tar --extract --directory=/ --no-same-owner")
    done = subprocess.run(unpack, input=packed.getvalue(), capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise FleetfootError(f"SOCI's programs did not reach the node: {said}", "no arm has them")


def index(node: Node, reference: str) -> None:
    """Make an image's index on a node, and push it."""
    node.run(_INDEX.format(folder=_FOLDER, image=shlex.quote(reference)))
