"""SOCI as an arm of bench pull: Debian's snapshotter, and the index that it needs of an image."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from fleetfoot import artifacts
from fleetfoot.errors import FleetfootError
from fleetfoot.images import build
from fleetfoot.paths import cache_dir
from fleetfoot.shell import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from fleetfoot.bench.puller import Node
    from fleetfoot.lazyfs.distribution import Access

__all__ = ["CONFIG", "START", "STOP", "index", "install"]

_PROGRAMS = ("soci", "soci-snapshotter-grpc")
_FOLDER, _ROOT = "/opt/soci", "/var/lib/soci-snapshotter-grpc"
_SECONDS = 900
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
systemd-run --quiet --collect --unit=soci --service-type=notify --setenv=HOME=/root \\
  --setenv=SSL_CERT_FILE={_FOLDER}/ca.crt {_FOLDER}/soci-snapshotter-grpc
"""
# Natively, on the host: an emulated processor takes a quarter of an hour for an image.
_INDEX = """
set -e
/opt/containerd --root=/mnt/root --state=/run/containerd --address=/run/containerd.sock \
  > /mnt/containerd.log 2>&1 &
export CONTAINERD_ADDRESS=/run/containerd.sock CONTAINERD_NAMESPACE=default
until /opt/ctr version > /dev/null 2>&1; do kill -0 $!; sleep 0.1; done
/opt/ctr content fetch --hosts-dir=/mnt/certs.d "$1" > /dev/null
soci create "$1"
soci push --quiet "$1"
"""


def index(image: str, address: str, access: Access, progress: Callable[[str], None]) -> None:
    """Make an image's index, and push it.

    Args:
        image: Its reference, as nodes have it.
        address: IP address of the registry, which this host cannot look up.
        access: How the registry is reached by whoever pushes.
        progress: Takes one line at a time for a person to follow.

    Raises:
        FleetfootError: It cannot be made, or not be pushed.
    """
    registry = image.partition("/")[0]
    with tempfile.TemporaryDirectory(prefix="fleetfoot-soci-") as name:
        work = Path(name)
        (certs := work / "certs.d" / registry).mkdir(parents=True)
        (work / "ca.crt").write_text(_authority(access))
        (certs / "hosts.toml").write_text(
            f"[host.'https://{registry}']\nca = '/mnt/ca.crt'\n"
            f"header = {{ Authorization = '{access.authorization()}' }}\n"
        )
        (work / ".docker").mkdir()
        (work / ".docker/config.json").write_text(_credential(access, registry))
        (work / "etc").mkdir()
        (work / "etc/hosts").write_text(f"{address} {registry.partition(':')[0]}\n")
        argv = ["bwrap", "--unshare-pid", "--die-with-parent", "--ro-bind", str(_tree(progress))]
        argv += ["/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/run"]
        argv += ["--tmpfs", _ROOT.rpartition("/")[0], "--bind", name, "/mnt"]
        argv += ["--ro-bind", str(artifacts.directory()), "/opt"]
        argv += ["--ro-bind", str(work / "etc"), "/etc"]
        argv += [
            "--setenv",
            "TMPDIR",
            "/mnt",
            "--setenv",
            "HOME",
            "/mnt",
            "--setenv",
            "SSL_CERT_FILE",
            "/mnt/ca.crt",
        ]
        argv += ["/bin/sh", "-c", _INDEX, "sh", image]
        run(argv, timeout=_SECONDS, consequence="SOCI cannot be measured")


def _tree(progress: Callable[[str], None]) -> Path:
    return build.build(
        "soci", cache=cache_dir(), artifacts=artifacts.directory(), progress=progress
    ).path


def _authority(access: Access) -> str:
    return access.authority.read_text() if access.authority else ""


def _credential(access: Access, registry: str) -> str:
    """Return Docker's configuration: the form that SOCI reads credentials in."""
    basic = access.authorization().removeprefix("Basic ")
    return json.dumps({"auths": {registry: {"auth": basic}}})


def install(node: Node, access: Access, registry: str, progress: Callable[[str], None]) -> None:
    """Put its programs on a node, and what they need to reach the registry.

    Args:
        node: The node.
        access: How the registry is reached.
        registry: `host:port` by which the node knows it.
        progress: Takes one line at a time for a person to follow.

    Raises:
        FleetfootError: They cannot be built, or do not reach the node.
    """
    tree = _tree(progress)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in _PROGRAMS:
            archive.add(tree / "usr/bin" / name, f"{_FOLDER[1:]}/{name}")
        for name, content in (
            (f"{_FOLDER[1:]}/ca.crt", _authority(access)),
            ("root/.docker/config.json", _credential(access, registry)),
        ):
            member = tarfile.TarInfo(name)
            member.mode, member.size = 0o600, len(content.encode())
            archive.addfile(member, io.BytesIO(content.encode()))
    unpack = node.command("tar --extract --directory=/ --no-same-owner")
    done = subprocess.run(unpack, input=packed.getvalue(), capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise FleetfootError(f"SOCI's programs did not reach the node: {said}", "no arm has them")
