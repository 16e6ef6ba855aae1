"""The node's folder of sector images: what is known of each, and what of it is here already.

`<root>/layers/<hex of the table's SHA-256>/`:

- `table`: the table, as the artifact has it;
- `sources.json`: repositories that have the sector image, `[[host, name], ...]`;
- `trace.json`: blocks that a start reads, and the blob that has them one after the other, if there
  is one: `{"runs": [[first, behind the last], ...], "pack": "sha256:..."}`, in their order;
- `data`: what was fetched, at its place, with holes for the rest;
- `present`: a bit for each block that `data` has;
- `complete`: all of `data` was verified; the boot in which, for a machine that lost its power may
  have lost some of it;
- `ahead.json`: blocks of the trace that `data` has, verified, so they may be read past the server:
  `{"boot": ..., "runs": [[first, behind the last], ...]}`, ascending; for this boot only, too;
- `lock`: held by whoever has the kernel read `data` for what these two say, or evicts it.

Layers with the same content are one folder. `data` is written before `present`, but not synced:
what an earlier process left is verified again before it is believed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import mmap
import os
import re
import shutil
import tempfile
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fleetfoot.errors import FleetfootError
from fleetfoot.lazyfs.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Cache", "Folder", "Place", "keep"]

_NAME = re.compile(r"[0-9a-f]{64}")
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


def keep(path: Path, content: bytes, *, sync: bool = False) -> None:
    """Write a file that is there whole or not at all.

    Args:
        path: The file.
        content: What is in it.
        sync: Whether it must outlive the loss of power.
    """
    handle, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            if sync:
                stream.flush()
                os.fsync(handle)
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class Place:
    """A repository that has a sector image.

    Attributes:
        host: Registry.
        name: Repository within it.
    """

    host: str
    name: str


@dataclass(frozen=True)
class Folder:
    """The folder of one sector image."""

    path: Path

    @classmethod
    def of(cls, root: Path, name: str) -> Folder:
        """Return the folder of a sector image, by the hex of its table's SHA-256.

        Raises:
            FleetfootError: This is no such name.
        """
        if not _NAME.fullmatch(name):
            raise FleetfootError(f"{name!r} is no name of a sector image", "it is not served")
        return cls(root / "layers" / name)

    @classmethod
    def all(cls, root: Path) -> Iterator[Folder]:
        """Return the folders that there are."""
        for path in sorted((root / "layers").glob("*")):
            if _NAME.fullmatch(path.name) and (path / "sources.json").exists():
                yield cls(path)

    @property
    def name(self) -> str:
        """Hex of the table's SHA-256."""
        return self.path.name

    @property
    def data(self) -> Path:
        """The file with what was fetched."""
        return self.path / "data"

    @property
    def is_complete(self) -> bool:
        """Whether all of it is here, and was verified since the machine was started."""
        try:
            return (self.path / "complete").read_bytes() == _BOOT.read_bytes()
        except OSError:
            return False

    def table(self) -> Table:
        """Read the table.

        Raises:
            FleetfootError: It is not there, or another.
        """
        try:
            data = (self.path / "table").read_bytes()
        except OSError as error:
            raise FleetfootError(f"{self.name} has no table", "it is not served") from error
        if hashlib.sha256(data).hexdigest() != self.name:
            raise FleetfootError(f"the table of {self.name} is another's", "it is not served")
        return Table.parse(data)

    def places(self) -> list[Place]:
        """Return where it can be fetched."""
        try:
            listed = json.loads((self.path / "sources.json").read_text())
            return [Place(*each) for each in listed]
        except (OSError, ValueError, TypeError):  # lost with the machine's power
            return []

    def add(self, table: bytes, place: Place) -> None:
        """Remember a sector image's table, and a repository that has it."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.data.exists():  # what was told of an earlier one
            self.unmark()
        others = [each for each in self.places() if each != place]
        keep(self.path / "table", table)
        # The newest first: an older one may be gone, or its credential with it.
        listed = [[each.host, each.name] for each in (place, *others)]
        keep(self.path / "sources.json", json.dumps(listed).encode())

    def set_trace(self, runs: Sequence[range], pack: str = "") -> None:
        """Remember what is to be fetched ahead, and the blob that has it one after the other."""
        plain = {"runs": [[run.start, run.stop] for run in runs], "pack": pack}
        keep(self.path / "trace.json", json.dumps(plain).encode())

    def trace(self) -> tuple[list[range], str]:
        """Return what is to be fetched ahead, in this order, and the blob that has it; or none."""
        try:
            plain = json.loads((self.path / "trace.json").read_text())
            return [range(*each) for each in plain["runs"]], str(plain["pack"])
        except (OSError, ValueError, TypeError, KeyError):
            return [], ""

    def mark_complete(self) -> None:
        """Remember that all of it is here."""
        keep(self.path / "complete", _BOOT.read_bytes())

    def set_ahead(self, runs: Sequence[range]) -> None:
        """Remember blocks that are here and verified, and may be read past the server."""
        listed = [[run.start, run.stop] for run in runs]
        content = {"boot": _BOOT.read_text(), "runs": listed}
        keep(self.path / "ahead.json", json.dumps(content).encode())

    def ahead(self) -> list[range]:
        """Return blocks that may be read past the server, ascending."""
        try:
            told = json.loads((self.path / "ahead.json").read_text())
            runs = [range(*each) for each in told["runs"]]
            return runs if told["boot"] == _BOOT.read_text() else []
        except (OSError, ValueError, TypeError, KeyError):
            return []

    def unmark(self) -> None:
        """Forget that any of it is here."""
        for name in ("complete", "ahead.json"):
            (self.path / name).unlink(missing_ok=True)

    @property
    def news(self) -> tuple[int, ...]:
        """What is another whenever something new is said of what is here."""
        seen: list[int] = []
        for name in ("complete", "ahead.json"):
            try:
                found = (self.path / name).stat()
            except OSError:
                seen.append(0)
            else:
                seen += [found.st_ino, found.st_mtime_ns]
        return tuple(seen)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from acting on whether it is complete.

        Raises:
            OSError: It is gone.
        """
        with (self.path / "lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def remove(self) -> None:
        """Forget it, and what was fetched."""
        with contextlib.suppress(FileNotFoundError), self.alone():
            # First: without it the folder counts as none.
            (self.path / "sources.json").unlink(missing_ok=True)
            shutil.rmtree(self.path, ignore_errors=True)


class Cache:
    """What is here of one sector image.

    Blocks that an earlier process left count as absent until `confirm` said otherwise. What is here
    may be evicted at any time: whoever read finds another `generation` then, and reads again.
    """

    def __init__(self, folder: Folder, table: Table) -> None:
        self._table, self._path = table, folder.data
        self._lock = threading.Lock()
        size = -(-table.block_count // 8)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._data = os.open(folder.data, flags, 0o600)
        present = os.open(folder.path / "present", flags, 0o600)
        try:
            os.truncate(self._data, table.length)
            os.truncate(present, size)
            try:
                # Bits of a mapped file outlive this process, however it ends. They need room first:
                # a page without it would end the process.
                os.posix_fallocate(present, 0, size)
                self._present: mmap.mmap | bytearray = mmap.mmap(present, size)
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                self._present = bytearray(size)
        finally:
            os.close(present)
        self._close = weakref.finalize(self, _closed, self._present, self._data)
        self._trusted = bytearray(size)
        self._generation = 0
        self._count = sum(byte.bit_count() for byte in self._present[:])

    @property
    def generation(self) -> int:
        """How often it was evicted."""
        with self._lock:  # not while it is
            return self._generation

    @property
    def count(self) -> int:
        """How many blocks are here."""
        return self._count

    @property
    def is_current(self) -> bool:
        """Whether what is read here is still the folder's, and not one that was removed."""
        try:
            return os.path.samestat(os.fstat(self._data), self._path.stat())
        except FileNotFoundError:
            return False

    def has(self, block: int) -> bool:
        """Whether a block is here and was verified by this process."""
        return bool(self._trusted[block >> 3] >> (block & 7) & 1)

    def confirm(self, block: int) -> bool | None:
        """Verify a block that an earlier process left.

        Returns:
            Whether it is what it must be; None where there is none.
        """
        generation = self.generation
        if not self._present[block >> 3] >> (block & 7) & 1:
            return None
        offset = block * self._table.block
        try:
            data = os.pread(self._data, self._table.block_size(block), offset)
        except OSError:  # of the disk: the registry has it
            data = b""
        good = len(data) == self._table.block_size(block) and not self._table.wrong(block, data)
        bit = 1 << (block & 7)
        with self._lock:
            if self._generation != generation:
                return None
            if good:
                self._trusted[block >> 3] |= bit
            elif self._present[block >> 3] & bit and not self._trusted[block >> 3] & bit:
                self._present[block >> 3] &= ~bit & 0xFF
                self._count -= 1
        return good

    def read(self, offset: int, count: int) -> bytes:
        """Return bytes that are here."""
        data = os.pread(self._data, count, offset)
        if len(data) != count:
            raise OSError(errno.EIO, f"{count} bytes at {offset} are gone from the cache")
        return data

    def write(self, first: int, data: bytes | memoryview) -> bool:
        """Keep verified blocks; return False where the disk has no room for them.

        Args:
            first: Number of the block that `data` begins with.
            data: Whole blocks, one after the other.
        """
        generation = self.generation
        try:
            written = os.pwrite(self._data, data, first * self._table.block)
        except OSError as error:
            if error.errno in _NO_ROOM:
                return False
            raise
        # What was written by half is not believed.
        blocks = range(first, first + (written // self._table.block))
        if written == len(data):
            blocks = range(first, first + -(-len(data) // self._table.block))
        with self._lock:
            if self._generation != generation:
                return False
            for block in blocks:
                bit = 1 << (block & 7)
                if not self._present[block >> 3] & bit:
                    self._count += 1
                self._present[block >> 3] |= bit
                self._trusted[block >> 3] |= bit
        return written == len(data)

    def evict(self) -> int:
        """Give the disk back what is here; return how many blocks that were."""
        with self._lock:
            gone, self._count = self._count, 0
            self._generation += 1
            self._trusted[:] = bytes(len(self._trusted))
            self._present[:] = bytes(len(self._trusted))
            os.truncate(self._data, 0)
            os.truncate(self._data, self._table.length)
            return gone

    def close(self) -> None:
        """Close the files; a cache that nobody holds any more does that itself."""
        self._close()


def _closed(present: mmap.mmap | bytearray, data: int) -> None:
    if isinstance(present, mmap.mmap):
        present.close()
    os.close(data)
