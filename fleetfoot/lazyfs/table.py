"""The table of a sector image: what every piece of it must hash to.

A sector image is one layer as an EROFS image. It is read in sectors and, where less will do, in the
blocks within them. The table names SHA-256 of both, so that whatever arrives is verified before it
is believed. Pieces have no offsets of their own: all follows from three sizes in the head, so that
nothing can overlap. A node knows a sector image by the table's own SHA-256: what is read under that
name is what the table says, whoever gave it.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from fleetfoot.errors import FleetfootError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["BLOCK", "LARGEST", "SECTOR", "Table", "hex_digest"]

SECTOR = 4 << 20
"""Bytes of a sector, the unit of caching and prefetching."""
BLOCK = 64 << 10
"""Bytes of a block, the least that a cold miss fetches."""
LARGEST = 64 << 30
"""Bytes of the largest sector image that a node takes."""

_MAGIC = b"FFLAZY\x00\x01"
# Magic and version, sector, block, length, SHA-256 of the sector image.
_HEAD = struct.Struct("<8sIIQ32s")
_DIGEST = hashlib.sha256().digest_size
_NAMED = 5  # pieces that a message names


def hex_digest(raw: bytes) -> str:
    """Return a digest as registries write it, `sha256:<hex>`."""
    return f"sha256:{raw.hex()}"


@dataclass(frozen=True)
class Table:
    """What a sector image must be.

    Attributes:
        length: Bytes of the sector image.
        image: SHA-256 of the whole sector image: what registries know it by.
        sectors: SHA-256 of each sector, one after the other.
        blocks: SHA-256 of each block, one after the other.
        sector: Bytes of a sector; the last may be shorter.
        block: Bytes of a block; the last may be shorter.
    """

    length: int
    image: bytes
    sectors: bytes
    blocks: bytes
    sector: int = SECTOR
    block: int = BLOCK

    @classmethod
    def of(cls, stream: IO[bytes]) -> Table:
        """Make the table of a sector image, which is read to its end."""
        whole, length = hashlib.sha256(), 0
        sectors, blocks = bytearray(), bytearray()
        while sector := stream.read(SECTOR):
            length += len(sector)
            whole.update(sector)
            sectors += hashlib.sha256(sector).digest()
            view = memoryview(sector)
            for start in range(0, len(sector), BLOCK):
                blocks += hashlib.sha256(view[start : start + BLOCK]).digest()
        return cls(length, whole.digest(), bytes(sectors), bytes(blocks))

    @classmethod
    def parse(cls, data: bytes) -> Table:
        """Read a table.

        Raises:
            FleetfootError: It is none, says what cannot be, or is cut off.
        """
        if len(data) < _HEAD.size:
            raise _refused(f"it has {len(data)} bytes, a head alone has {_HEAD.size}")
        magic, sector, block, length, image = _HEAD.unpack_from(data)
        if magic != _MAGIC:
            raise _refused("it does not begin as one of this version does")
        if (sector, block) != (SECTOR, BLOCK):
            raise _refused(f"sectors of {sector} and blocks of {block} bytes")
        if not 0 < length <= LARGEST:
            raise _refused(f"a length of {length} bytes, where 1 to {LARGEST} are possible")
        if len(data) != (size := cls.size_for(length)):
            raise _refused(f"it has {len(data)} bytes, and {size} follow from its head")
        ends = _HEAD.size + _DIGEST * _pieces(length, sector)
        return cls(length, image, data[_HEAD.size : ends], data[ends:], sector, block)

    @staticmethod
    def size_for(length: int) -> int:
        """Return the bytes of the table of a sector image of `length` bytes."""
        return _HEAD.size + _DIGEST * (_pieces(length, SECTOR) + _pieces(length, BLOCK))

    def dump(self) -> bytes:
        """Return the table's bytes, the same for the same sector image."""
        head = _HEAD.pack(_MAGIC, self.sector, self.block, self.length, self.image)
        return head + self.sectors + self.blocks

    @property
    def sector_count(self) -> int:
        """How many sectors there are."""
        return _pieces(self.length, self.sector)

    @property
    def block_count(self) -> int:
        """How many blocks there are."""
        return _pieces(self.length, self.block)

    def sector_digest(self, number: int) -> bytes:
        """Return what a sector must hash to."""
        return self.sectors[number * _DIGEST : (number + 1) * _DIGEST]

    def block_digest(self, number: int) -> bytes:
        """Return what a block must hash to."""
        return self.blocks[number * _DIGEST : (number + 1) * _DIGEST]

    def block_size(self, number: int) -> int:
        """Return the bytes of a block."""
        return min(self.block, self.length - number * self.block)

    def size_of(self, run: range) -> int:
        """Return the bytes of blocks that lie side by side."""
        return min(run.stop * self.block, self.length) - run.start * self.block

    def wrong(self, first: int, data: bytes | bytearray | memoryview) -> list[int]:
        """Return which blocks are not what they must be.

        Args:
            first: Number of the block that `data` begins with.
            data: Whole blocks, one after the other.
        """
        view = memoryview(data)
        pieces = (view[start : start + self.block] for start in range(0, len(view), self.block))
        return [
            number
            for number, piece in enumerate(pieces, first)
            if hashlib.sha256(piece).digest() != self.block_digest(number)
        ]

    def within(self, runs: Iterable[range]) -> list[range]:
        """Return what of runs of blocks there is, each block once: traces come from elsewhere."""
        known, seen, named = list[range](), set[int](), 0
        for run in runs:
            named += len(run)
            if named > 2 * self.block_count:  # this is no trace, and would only take time
                break
            for block in range(run.start, min(run.stop, self.block_count)):
                if block in seen:
                    continue
                seen.add(block)
                if known and known[-1].stop == block and known[-1].start >= run.start:
                    known[-1] = range(known[-1].start, block + 1)
                else:
                    known.append(range(block, block + 1))
        return known

    def blocks_of(self, offset: int, count: int) -> range:
        """Return the numbers of the blocks that hold `count` bytes from `offset` on."""
        return range(offset // self.block, _pieces(offset + count, self.block))

    def check(self, stream: IO[bytes]) -> Iterator[str]:
        """Compare a whole sector image with its table; yield what is wrong, a line each."""
        found = Table.of(stream)
        if found.length != self.length:
            yield f"the sector image has {found.length} bytes, its table says {self.length}"
        if found.image != self.image:
            yield f"the sector image is {hex_digest(found.image)}, not {hex_digest(self.image)}"
        for name, size in (("sectors", self.sector), ("blocks", self.block)):
            mine, other = getattr(self, name), getattr(found, name)
            count = min(len(mine), len(other)) // _DIGEST
            piece = [slice(n * _DIGEST, (n + 1) * _DIGEST) for n in range(count)]
            differ = [n for n, part in enumerate(piece) if mine[part] != other[part]]
            if differ:
                some = ", ".join(map(str, differ[:_NAMED]))
                more = ", ..." if len(differ) > _NAMED else ""
                yield f"{len(differ)} {name} of {size} bytes differ from the table: {some}{more}"


def _pieces(length: int, size: int) -> int:
    return -(-length // size)


def _refused(why: str) -> FleetfootError:
    return FleetfootError(
        f"the table of a sector image is not usable: {why}",
        "the layer is not mounted lazily",
        "convert the image again (`fleetfoot lazy convert`)",
    )
