"""The identity of machines whose image has cloud-init: a NoCloud disk made from the credentials.

Which credential becomes which file is read where the serverless image states it, in lines of
tmpfiles.d(5), so that both images are given the same files.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleetfoot.paths import PROJECT
from fleetfoot.shell import run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fleetfoot.machines.network import NetworkSpec

__all__ = ["network_config", "user_data", "write_seed"]

_LINES = PROJECT / "images/serverless/mkosi.extra/usr/lib/tmpfiles.d/00-fleetfoot-identity.conf"
_EXTRA = "tmpfiles.extra"
_HOST_KEY = "fleetfoot.ssh-host-key"
# cloud-init has words of its own for these.
_OTHERWISE = {_HOST_KEY, "fleetfoot.resolv-conf"}
_FIELDS = 7  # of a tmpfiles.d line: type, path, mode, user, group, age, argument


def write_seed(
    target: Path,
    *,
    name: str,
    host_key: str,
    network: NetworkSpec,
    address: str,
    credentials: Mapping[str, str],
) -> Path:
    """Write the disk (0600) unless it is there; return its path.

    Args:
        target: The file.
        name: The machine's name.
        host_key: Public line of its SSH host key.
        network: The network it stands in.
        address: Its IPv4 address.
        credentials: Name to content, as for the serverless image.
    """
    if target.exists():
        return target
    user = user_data(host_key, credentials)
    instance = f"{name}-{hashlib.sha256(user.encode()).hexdigest()[:12]}"
    files = {
        "user-data": user,
        "meta-data": json.dumps({"instance-id": instance, "local-hostname": name}),
        "network-config": json.dumps(network_config(network, address)),
    }
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:  # 0700
        for file, content in files.items():
            Path(folder, file).write_text(content)
        new = Path(folder, "seed.iso")
        argv = ["xorriso", "-as", "genisoimage", "-quiet", "-volid", "CIDATA", "-joliet", "-rock"]
        argv += ["-output", str(new), *(str(Path(folder, file)) for file in files)]
        run(argv, consequence=f"{name} would not know who it is")
        new.chmod(0o600)
        new.replace(target)
    return target


def user_data(host_key: str, credentials: Mapping[str, str]) -> str:
    """Return cloud-init's user data: keys for root and sshd, and the files of the credentials."""
    config: dict[str, Any] = {
        "users": [
            {
                "name": "root",
                "ssh_authorized_keys": credentials["ssh.authorized_keys.root"].splitlines(),
            }
        ],
        "ssh_keys": {
            "ed25519_private": credentials[_HOST_KEY],
            "ed25519_public": host_key,
        },
    }
    if files := list(_files(credentials)):  # cloud-init warns of an empty list
        config["write_files"] = files
    return "#cloud-config\n" + json.dumps(config, indent=1)


def _files(credentials: Mapping[str, str]) -> Iterator[dict[str, str]]:
    lines = _LINES.read_text() + credentials.get(_EXTRA, "")
    for fields in (line.split() for line in lines.splitlines()):
        if len(fields) < _FIELDS or fields[0] != "f^":
            continue
        _, path, mode, user, group, _, credential = fields
        if credential in credentials and credential not in _OTHERWISE:
            yield {
                "path": path,
                "permissions": mode,
                "owner": f"{user}:{group}",
                "content": credentials[credential],
            }


def network_config(network: NetworkSpec, address: str) -> dict[str, Any]:
    """Return the network configuration (version 2, netplan's) with a fixed address."""
    return {
        "version": 2,
        "ethernets": {
            "uplink": {
                "match": {"name": "en*"},
                "addresses": [f"{address}/{network.prefix}"],
                "routes": [{"to": "default", "via": network.gateway}],
                "nameservers": {"addresses": [network.gateway], "search": [network.zone]},
                "link-local": [],
                "accept-ra": False,
            }
        },
    }
