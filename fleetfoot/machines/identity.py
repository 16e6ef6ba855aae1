"""A machine's own keys and the files that tell it who it is."""

from __future__ import annotations

import base64
import contextlib
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fleetfoot.locks import alone
from fleetfoot.paths import private_dir, write_private

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fleetfoot.machines.network import NetworkSpec

__all__ = ["network_file", "pin_host_key", "resolv_conf", "ssh_key", "unpin_host_key"]


def ssh_key(path: Path, comment: str) -> str:
    """Make an ed25519 key at `path` (0600) unless it is there; return its public line."""
    if path.exists():
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    else:
        key = Ed25519PrivateKey.generate()
        write_private(
            path,
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.OpenSSH,
                serialization.NoEncryption(),
            ),
        )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    line = f"{public.decode()} {comment}"
    write_private(path.with_name(f"{path.name}.pub"), f"{line}\n")
    return line


def network_file(spec: NetworkSpec, address: str) -> str:
    """Return the systemd-networkd file that gives a machine its address (systemd.network(5))."""
    return f"""\
[Match]
Name=host0 en* eth*

[Link]
RequiredForOnline=no

[Network]
Address={address}/{spec.prefix}
Gateway={spec.gateway}
DNS={spec.gateway}
Domains={spec.zone}
LinkLocalAddressing=no
IPv6AcceptRA=no
LLDP=no
"""


def resolv_conf(spec: NetworkSpec) -> str:
    """Return resolv.conf(5) for machines that run no resolver of their own."""
    return f"nameserver {spec.gateway}\nsearch {spec.zone}\noptions timeout:2 attempts:3\n"


def pin_host_key(known_hosts: Path, names: list[str], public: str) -> None:
    """Let `known_hosts` hold exactly this key for `names` (sshd(8), known_hosts format)."""
    kind, key = public.split()[:2]
    base64.b64decode(key, validate=True)
    with _alone(known_hosts):
        kept = _without(known_hosts, names[0])
        write_private(known_hosts, "".join([*kept, f"{','.join(names)} {kind} {key}\n"]))


def unpin_host_key(known_hosts: Path, name: str) -> None:
    """Forget the key of the machine whose first name is `name`."""
    if known_hosts.exists():
        with _alone(known_hosts):
            write_private(known_hosts, "".join(_without(known_hosts, name)))


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep others from changing a file: machines are made side by side."""
    with alone(private_dir(path.parent) / f".{path.name}.lock"):
        yield


def _without(known_hosts: Path, name: str) -> list[str]:
    if not known_hosts.exists():
        return []
    lines = known_hosts.read_text().splitlines(keepends=True)
    return [line for line in lines if line.split(" ", 1)[0].split(",")[0] != name]
