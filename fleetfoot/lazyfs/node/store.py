"""The node's folder of sector images: what is known of each, and what of it is here already.

`<root>/layers/<hex of the sector image's SHA-256>/`:

- `table`: the table, as the artifact has it;
- `sources.json`: repositories that have the sector image, `[[host, name], ...]`;
- `data`: what was fetched, at its place, with holes for the rest;
- `present`: a bit for each block that `data` has.

Layers with the same content are one folder. `data` is written before `present`, but not synced:
what a machine that lost its power finds is verified again before it is believed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import re
import shutil
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fleetfoot.errors import FleetfootError
from fleetfoot.lazyfs.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Cache", "Folder", "Place"]

_NAME = re.compile(r"[0-9a-f]{64}")


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
    def of(cls, root: Path, image: str) -> Folder:
        """Return the folder of a sector image, by the hex of its SHA-256.

        Raises:
            FleetfootError: This is no such name.
        """
        if not _NAME.fullmatch(image):
            raise FleetfootError(f"{image!r} is no name of a sector image", "it is not served")
        return cls(root / "layers" / image)

    @classmethod
    def all(cls, root: Path) -> Iterator[Folder]:
        """Return the folders that there are."""
        for path in sorted((root / "layers").glob("*")):
            if _NAME.fullmatch(path.name) and (path / "sources.json").exists():
                yield cls(path)

    @property
    def image(self) -> str:
        """Hex of the sector image's SHA-256."""
        return self.path.name

    @property
    def data(self) -> Path:
        """The file with what was fetched."""
        return self.path / "data"

    @property
    def is_complete(self) -> bool:
        """Whether all of it is here and was verified as a whole."""
        return (self.path / "complete").exists()

    def table(self) -> Table:
        """Read the table.

        Raises:
            FleetfootError: It is not there, or not that of this sector image.
        """
        try:
            table = Table.parse((self.path / "table").read_bytes())
        except OSError as error:
            raise FleetfootError(
                f"there is no table of {self.image}", "it is not served"
            ) from error
        if table.image.hex() != self.image:
            raise FleetfootError(f"the table of {self.image} is another's", "it is not served")
        return table

    def places(self) -> list[Place]:
        """Return where it can be fetched."""
        return [Place(*each) for each in json.loads((self.path / "sources.json").read_text())]

    def add(self, table: bytes, place: Place) -> None:
        """Remember a sector image's table, and a repository that has it."""
        self.path.mkdir(parents=True, exist_ok=True)
        known = self.places() if (self.path / "sources.json").exists() else []
        others = [each for each in known if each != place]
        self._write("table", table)
        # The newest first: an older one may be gone, or its credential with it.
        listed = [[each.host, each.name] for each in (place, *others)]
        self._write("sources.json", json.dumps(listed).encode())

    def mark_complete(self) -> None:
        """Remember that all of it is here."""
        self._write("complete", b"")

    def remove(self) -> None:
        """Forget it, and what was fetched."""
        with contextlib.suppress(FileNotFoundError):
            (self.path / "sources.json").unlink()  # first: without it the folder counts as none
        shutil.rmtree(self.path, ignore_errors=True)

    def _write(self, name: str, content: bytes) -> None:
        part = self.path / f".{name}"
        part.write_bytes(content)
        part.replace(self.path / name)


class Cache:
    """What is here of one sector image.

    Blocks that an earlier process left count as absent until `confirm` said otherwise.
    """

    def __init__(self, folder: Folder, table: Table) -> None:
        self._table = table
        self._lock = threading.Lock()
        size = -(-table.block_count // 8)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._data = os.open(folder.data, flags, 0o600)
        present = os.open(folder.path / "present", flags, 0o600)
        try:
            os.truncate(self._data, table.length)
            os.truncate(present, size)
            # Bits of a mapped file outlive this process, however it ends.
            self._present = mmap.mmap(present, size)
        finally:
            os.close(present)
        self._trusted = bytearray(size)
        self._count = sum(byte.bit_count() for byte in self._present[:])

    @property
    def count(self) -> int:
        """How many blocks are here."""
        return self._count

    def has(self, block: int) -> bool:
        """Whether a block is here and was verified by this process."""
        return bool(self._trusted[block >> 3] >> (block & 7) & 1)

    def confirm(self, block: int) -> bool | None:
        """Verify a block that an earlier process left.

        Returns:
            Whether it is what it must be; None where there is none.
        """
        if not self._present[block >> 3] >> (block & 7) & 1:
            return None
        offset = block * self._table.block
        data = os.pread(self._data, self._table.block_size(block), offset)
        good = len(data) == self._table.block_size(block) and not self._table.wrong(block, data)
        with self._lock:
            if good:
                self._trusted[block >> 3] |= 1 << (block & 7)
            else:
                self._present[block >> 3] &= ~(1 << (block & 7)) & 0xFF
                self._count -= 1
        return good

    def read(self, offset: int, count: int) -> bytes:
        """Return bytes that are here."""
        data = os.pread(self._data, count, offset)
        if len(data) != count:
            raise OSError(errno.EIO, f"{count} bytes at {offset} are gone from the cache")
        return data

    def write(self, first: int, data: bytes) -> bool:
        """Keep verified blocks; return False where the disk has no room for them.

        Args:
            first: Number of the block that `data` begins with.
            data: Whole blocks, one after the other.
        """
        try:
            written = os.pwrite(self._data, data, first * self._table.block)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}:
                return False
            raise
        # What was written by half is not believed.
        blocks = range(first, first + (written // self._table.block))
        if written == len(data):
            blocks = range(first, first + -(-len(data) // self._table.block))
        with self._lock:
            for block in blocks:
                bit = 1 << (block & 7)
                if not self._present[block >> 3] & bit:
                    self._count += 1
                self._present[block >> 3] |= bit
                self._trusted[block >> 3] |= bit
        return written == len(data)

    def close(self) -> None:
        """Close the files."""
        self._present.close()
        os.close(self._data)
