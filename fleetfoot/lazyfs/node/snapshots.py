"""Snapshots: what containerd stacks into root file systems, and what is known of each.

`<root>/snapshots/<folder>/`: `snapshot.json`, `fs` (content, or where a lazy layer is mounted),
`work` (overlayfs' own, of snapshots that can be written). A snapshot is there when its file is:
folders without one are what a killed process left, and `cleanup` removes them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
import uuid
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from fleetfoot.lazyfs.node.api import ACTIVE, COMMITTED, VIEW
from fleetfoot.lazyfs.node.store import keep

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = ["Mount", "Snapshot", "SnapshotError", "Snapshots"]

_BLOCK = 512  # of st_blocks (stat(2))
_KNOWN = "snapshot.json"
_NAME_LENGTH = 12
#: containerd unpacks layers side by side: the one below is named when a layer is committed.
_PARENT_LATER = "containerd.io/snapshot/parent-chain-id"


class SnapshotError(Exception):
    """A request that cannot be met.

    Attributes:
        code: Name of gRPC's status code.
    """

    def __init__(self, code: str, told: str) -> None:
        super().__init__(told)
        self.code = code


@dataclass(frozen=True)
class Mount:
    """A mount that containerd is to make."""

    type: str
    source: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Snapshot:
    """What is known of a snapshot.

    Attributes:
        folder: Name of its folder, never used twice.
        key: Its name; containerd chooses it.
        parent: Name of the committed snapshot below; empty for the lowest.
        kind: VIEW, ACTIVE or COMMITTED.
        labels: containerd's.
        created: Seconds since the epoch.
        updated: Seconds since the epoch.
        layer: Name of the sector image's folder that is mounted there; empty for an ordinary one.
    """

    folder: str
    key: str
    parent: str
    kind: int
    labels: dict[str, str] = field(default_factory=dict)
    created: float = 0.0
    updated: float = 0.0
    layer: str = ""


class Snapshots:
    """All snapshots of a node. Threads may share it.

    Args:
        root: The node's folder.
        volatile: Whether what containers write may be lost with the machine: it is never synced.
    """

    def __init__(self, root: Path, *, volatile: bool) -> None:
        self._home, self._volatile = root / "snapshots", volatile
        self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.RLock()
        self._by_key: dict[str, Snapshot] = {}
        for path in self._home.glob(f"*/{_KNOWN}"):
            try:
                plain = json.loads(path.read_text())
            except ValueError:  # lost with the machine's power
                path.unlink()
                continue
            fields = Snapshot.__dataclass_fields__  # another version may know others
            known = Snapshot(**{key: plain[key] for key in fields if key in plain})
            self._by_key[known.key] = known

    def folder(self, snapshot: Snapshot) -> Path:
        """Return where a snapshot's content is."""
        return self._home / snapshot.folder / "fs"

    def get(self, key: str) -> Snapshot:
        """Return a snapshot.

        Raises:
            SnapshotError: There is none.
        """
        with self._lock:
            if key not in self._by_key:
                raise SnapshotError("NOT_FOUND", f"snapshot {key}: not found")
            return self._by_key[key]

    def all(self) -> list[Snapshot]:
        """Return all."""
        with self._lock:
            return list(self._by_key.values())

    def add(
        self, key: str, parent: str, kind: int, labels: dict[str, str], *, layer: str = ""
    ) -> Snapshot:
        """Make a snapshot.

        Raises:
            SnapshotError: There is one of that name, or no committed one of the parent's.
        """
        with self._lock:
            if key in self._by_key:
                raise SnapshotError("ALREADY_EXISTS", f"snapshot {key}: already exists")
            if parent and self.get(parent).kind != COMMITTED:
                raise SnapshotError("INVALID_ARGUMENT", f"parent {parent} is not committed")
            now = time.time()
            name = uuid.uuid4().hex[:_NAME_LENGTH]
            made = Snapshot(name, key, parent, kind, labels, now, now, layer)
            folder = self.folder(made)
            folder.mkdir(parents=True)
            # Whatever the umask: it is what containers see as their root.
            folder.chmod(0o755)
            if kind == ACTIVE:
                (work := folder.parent / "work").mkdir()
                work.chmod(0o711)
                if parent:
                    above = self.folder(self.get(parent)).stat()
                    os.chown(folder, above.st_uid, above.st_gid)
            self._keep(made)
            return made

    def commit(self, name: str, key: str, labels: dict[str, str], parent: str = "") -> None:
        """Make an active snapshot one that others can stand on.

        Args:
            name: Its new name.
            key: Its present one.
            labels: containerd's; the former ones are gone.
            parent: What it stands on, where that was not said before.

        Raises:
            SnapshotError: It is not active, there is one of the new name, or the parent is another.
        """
        with self._lock:
            active = self.get(key)
            if name in self._by_key:
                raise SnapshotError("ALREADY_EXISTS", f"snapshot {name}: already exists")
            if active.kind != ACTIVE:
                raise SnapshotError("FAILED_PRECONDITION", f"snapshot {key} is not active")
            if parent and active.parent not in {"", parent}:
                raise SnapshotError("INVALID_ARGUMENT", f"snapshot {key} stands on another")
            if parent and self.get(parent).kind != COMMITTED:
                raise SnapshotError("FAILED_PRECONDITION", f"parent {parent} is not committed")
            below, now = parent or active.parent, time.time()
            self._keep(
                replace(active, key=name, parent=below, kind=COMMITTED, labels=labels, updated=now)
            )
            del self._by_key[key]

    def remove(self, key: str) -> Snapshot:
        """Forget a snapshot; its folder goes with `cleanup`, or at once where nothing is mounted.

        Raises:
            SnapshotError: There is none, or others stand on it.
        """
        with self._lock:
            gone = self.get(key)
            if any(each.parent == key for each in self._by_key.values()):
                raise SnapshotError("FAILED_PRECONDITION", f"snapshot {key} has others on it")
            (self._home / gone.folder / _KNOWN).unlink(missing_ok=True)
            del self._by_key[key]
        return gone

    def update(self, key: str, labels: dict[str, str] | None) -> Snapshot:
        """Change a snapshot's labels; None leaves them."""
        with self._lock:
            known = self.get(key)
            kept = replace(
                known, labels=known.labels if labels is None else labels, updated=time.time()
            )
            self._keep(kept)
            return kept

    def below(self, snapshot: Snapshot) -> Iterator[Snapshot]:
        """Return the snapshots it stands on, the uppermost first."""
        parent = snapshot.parent
        while parent:
            known = self.get(parent)
            yield known
            parent = known.parent

    def mounts(self, snapshot: Snapshot) -> list[Mount]:
        """Return what containerd mounts to get at a snapshot."""
        content = self.folder(snapshot)
        if snapshot.layer:  # its content is there: containerd has nothing to unpack
            return [Mount("bind", str(content), ("ro", "rbind"))]
        if snapshot.kind == ACTIVE and not snapshot.parent and _PARENT_LATER in snapshot.labels:
            # Not to be mounted. Of this kind, so that what it removes is kept as overlayfs does.
            return [Mount("overlay", "overlay", (f"upperdir={content}",))]
        lower = [str(self.folder(each)) for each in self.below(snapshot)]
        if snapshot.kind == VIEW and len(lower) == 1:
            return [Mount("bind", lower[0], ("ro", "rbind"))]
        if not lower:
            access = "ro" if snapshot.kind == VIEW else "rw"
            return [Mount("bind", str(content), (access, "rbind"))]
        options = [f"lowerdir={':'.join(lower)}"]
        if snapshot.kind == ACTIVE:
            work = content.parent / "work"
            options = [f"workdir={work}", f"upperdir={content}", *options]
            options += ["volatile"] if self._volatile else []
        return [Mount("overlay", "overlay", tuple(options))]

    def usage(self, snapshot: Snapshot) -> tuple[int, int]:
        """Return the bytes and inodes that an ordinary snapshot takes on disk."""
        size, inodes = 0, 0
        seen: set[int] = set()
        for folder, _, files in os.walk(self.folder(snapshot)):
            for path in (folder, *(os.path.join(folder, name) for name in files)):  # noqa: PTH118
                with contextlib.suppress(FileNotFoundError):  # containers go on while we look
                    found = os.lstat(path)
                    if found.st_ino not in seen:
                        seen.add(found.st_ino)
                        size += found.st_blocks * _BLOCK
                        inodes += 1
        return size, inodes

    def orphans(self) -> Iterable[Path]:
        """Return folders that belong to no snapshot."""
        with self._lock:
            known = {each.folder for each in self._by_key.values()}
            return [path for path in self._home.iterdir() if path.name not in known]

    @staticmethod
    def drop(folder: Path) -> None:
        """Remove the folder of a snapshot that is gone; nothing may be mounted in it."""
        shutil.rmtree(folder, ignore_errors=True)

    def _keep(self, snapshot: Snapshot) -> None:
        content = json.dumps(asdict(snapshot)).encode()
        keep(self._home / snapshot.folder / _KNOWN, content, sync=not self._volatile)
        self._by_key[snapshot.key] = snapshot
