"""Where Fleetfoot keeps things.

Everything of one stack stands under `.fleetfoot/<stack>/` in the checkout (mode 0700), sockets and
process records under `/run/fleetfoot/<stack>/` (short, so that a socket's path fits), and built
artifacts, keyed by content, in the user's cache folder.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PROJECT", "StackPaths", "cache_dir", "private_dir", "size_of", "taken", "write_private"]

PROJECT = Path(__file__).resolve().parent.parent
_BLOCK = 512  # of st_blocks (stat(2))


def cache_dir() -> Path:
    """Return the folder for built artifacts (`$FLEETFOOT_CACHE`, else the user's cache folder)."""
    override = os.environ.get("FLEETFOOT_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(override) if override else base / "fleetfoot"


def taken(paths: Iterable[Path]) -> int:
    """Return the bytes that files take on disk; holes and what links point to are not counted."""
    return sum(path.lstat().st_blocks * _BLOCK for path in paths)


def size_of(folder: Path) -> int:
    """Return the bytes that a folder takes on disk; 0 when it is not there."""
    return taken(folder.rglob("*"))


def private_dir(path: Path) -> Path:
    """Create `path` with mode 0700 (parents too) and return it."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    for part in reversed(missing):
        part.mkdir(mode=0o700, exist_ok=True)
    return path


def write_private(path: Path, content: str | bytes, mode: int = 0o600) -> Path:
    """Write `content` to `path` atomically with `mode`, without a moment of wider access."""
    private_dir(path.parent)
    data = content.encode() if isinstance(content, str) else content
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as stream:
            os.fchmod(fd, mode)
            stream.write(data)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


@dataclass(frozen=True)
class StackPaths:
    """The folders of one stack."""

    stack: str
    project: Path = PROJECT

    @property
    def root(self) -> Path:
        """Everything that belongs to the stack and must outlive a reboot."""
        return self.project / ".fleetfoot" / self.stack

    @property
    def run(self) -> Path:
        """Process records, sockets and locks; gone after a reboot, as the processes are."""
        return Path("/run/fleetfoot") / self.stack

    def record(self, process: str) -> Path:
        """What remembers a process of the stack; a machine's has the machine's name."""
        return self.run / f"{process}.process"

    @property
    def machines(self) -> Path:
        """One folder a machine."""
        return self.root / "machines"

    @property
    def backups(self) -> Path:
        """Copies of what the cluster knew; they outlive the stack."""
        return self.root / "backups"

    @property
    def volumes(self) -> Path:
        """Data of machines that outlives a replaced machine (etcd, registry)."""
        return self.root / "volumes"

    @property
    def network(self) -> Path:
        """Address map, DNS records."""
        return self.root / "network"

    @property
    def pki(self) -> Path:
        """Certificate authorities, `<name>/ca.crt` and `<name>/ca.key`."""
        return self.root / "pki"

    @property
    def ssh_key(self) -> Path:
        """The private key that opens the stack's machines."""
        return self.root / "ssh" / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """Pinned host keys of the stack's machines."""
        return self.root / "ssh" / "known_hosts"

    @property
    def kubeconfig(self) -> Path:
        """The operator's kubeconfig."""
        return self.kubeconfig_of("online")

    def inventory(self, run: str) -> Path:
        """The inventory with which a playbook's run was last made."""
        return self.root / "inventory" / f"{run}.json"

    @property
    def made(self) -> Path:
        """The inventory with which site.yml last came through; what was refused made nothing."""
        return self.inventory("site-made")

    def control_plane(self) -> dict[str, Any] | None:
        """The inventory's `all` of the control plane that is there; None before the first run.

        Until a run came through, it is what the last one was to make.
        """
        for record in (self.made, self.inventory("site")):
            if record.exists():
                return dict(json.loads(record.read_text())["all"])
        return None

    def kubeconfig_of(self, group: str) -> Path:
        """The kubeconfig of a group of apiservers (online: the operator's), or `break-glass`."""
        return self.root / ("kubeconfig" if group == "online" else f"kubeconfig-{group}")
