"""The table of a sector image: what every piece of it must hash to, and how long it is packed.

A sector image is one layer as an EROFS image. It is read in sectors and, where less will do, in the
blocks within them. The table names SHA-256 of both, so that whatever arrives is verified before it
is believed. Registries have its blocks packed one after the other, each a frame of zstd by itself,
or as it is where that would be no shorter. Pieces have no offsets of their own: all follows from
sizes, so that nothing can overlap. A node knows a sector image by the table's own SHA-256: what is
read under that name is what the table says, whoever gave it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import struct
import sys
from array import array
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import IO, TYPE_CHECKING

import zstandard

from fleetfoot.errors import FleetfootError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from concurrent.futures import Future

__all__ = ["BLOCK", "LARGEST", "PACKER", "SECTOR", "Table", "hex_digest"]

SECTOR = 4 << 20
"""Bytes of a sector, the unit of caching and prefetching."""
BLOCK = 64 << 10
"""Bytes of a block, the least that a cold miss fetches."""
LARGEST = 64 << 30
"""Bytes of the largest sector image that a node takes."""

_LEVEL = 9  # twice as long as 3 takes a tenth less, and 19 ten times as long another sixteenth
PACKER = f"zstd {'.'.join(map(str, zstandard.ZSTD_VERSION))} level {_LEVEL}"
"""What packs blocks: their bytes depend on it."""
_PACKERS = 4  # sectors that are packed side by side: each takes some 10 MiB
# Other beginnings are those of zstd's former formats, whose decoders have bounds of their own.
_FRAME = b"\x28\xb5\x2f\xfd"
_MAGIC = b"FFLAZY\x00\x02"
#: The first version had no sizes, for blocks were not packed: nodes that are brought up to date may
#: have layers mounted that were brought so.
_NOT_PACKED = b"FFLAZY\x00\x01"
# Magic and version, sector, block, length, SHA-256 of the packed sector image. Then SHA-256 of each
# sector and each block, and 32 bits for each block with its bytes when it is packed.
_HEAD = struct.Struct("<8sIIQ32s")
_DIGEST, _SIZE = hashlib.sha256().digest_size, 4
_NAMED = 5  # pieces that a message names


def hex_digest(raw: bytes) -> str:
    """Return a digest as registries write it, `sha256:<hex>`."""
    return f"sha256:{raw.hex()}"


@dataclass(frozen=True)
class Table:
    """What a sector image must be.

    Attributes:
        length: Bytes of the sector image.
        image: SHA-256 of the packed sector image: what registries know it by.
        sectors: SHA-256 of each sector, one after the other.
        blocks: SHA-256 of each block, one after the other.
        sizes: Bytes of each packed block, one after the other, four bytes each (little-endian).
        sector: Bytes of a sector; the last may be shorter.
        block: Bytes of a block; the last may be shorter.
    """

    length: int
    image: bytes
    sectors: bytes
    blocks: bytes
    sizes: bytes
    sector: int = SECTOR
    block: int = BLOCK

    @classmethod
    def of(cls, stream: IO[bytes], target: IO[bytes] | None = None) -> Table:
        """Make the table of a sector image, which is read to its end.

        Args:
            stream: The sector image.
            target: Where to write it packed; without one it stays as it is.
        """
        whole, length = hashlib.sha256(), 0
        sectors, blocks, sizes = bytearray(), bytearray(), array("I")
        for sector, packed in _packed(stream) if target else _plain(stream):
            length += len(sector)
            sectors += hashlib.sha256(sector).digest()
            for block in _pieces_of(sector):
                blocks += hashlib.sha256(block).digest()
            for piece in packed:
                whole.update(piece)
                sizes.append(len(piece))
                if target:
                    target.write(piece)
        return cls(length, whole.digest(), bytes(sectors), bytes(blocks), _little(sizes).tobytes())

    @classmethod
    def parse(cls, data: bytes) -> Table:
        """Read a table.

        Raises:
            FleetfootError: It is none, says what cannot be, or is cut off.
        """
        if len(data) < _HEAD.size:
            raise _refused(f"it has {len(data)} bytes, a head alone has {_HEAD.size}")
        magic, sector, block, length, image = _HEAD.unpack_from(data)
        if magic not in {_MAGIC, _NOT_PACKED}:
            raise _refused("it does not begin as one of this version does")
        if (sector, block) != (SECTOR, BLOCK):
            raise _refused(f"sectors of {sector} and blocks of {block} bytes")
        if not 0 < length <= LARGEST:
            raise _refused(f"a length of {length} bytes, where 1 to {LARGEST} are possible")
        blocks = _HEAD.size + _DIGEST * _pieces(length, sector)
        sizes = blocks + _DIGEST * _pieces(length, block)
        size = cls.size_for(length) if magic == _MAGIC else sizes
        if len(data) != size:
            raise _refused(f"it has {len(data)} bytes, and {size} follow from its head")
        if magic == _NOT_PACKED:
            whole, rest = divmod(length, block)
            plain = array("I", [block] * whole + [rest] * bool(rest))
            data += _little(plain).tobytes()
        pieces = data[_HEAD.size : blocks], data[blocks:sizes], data[sizes:]
        found = cls(length, image, *pieces, sector, block)
        packed = found._sizes
        last = found.block_size(len(packed) - 1)
        if not min(packed) or max(packed) > block or packed[-1] > last:
            raise _refused(f"a packed block has none, or more than {block} bytes")
        return found

    @staticmethod
    def size_for(length: int) -> int:
        """Return the bytes of the table of a sector image of `length` bytes."""
        blocks = _pieces(length, BLOCK)
        return _HEAD.size + _DIGEST * (_pieces(length, SECTOR) + blocks) + _SIZE * blocks

    def dump(self) -> bytes:
        """Return the table's bytes as this version writes them, the same for the same image."""
        head = _HEAD.pack(_MAGIC, self.sector, self.block, self.length, self.image)
        return head + self.sectors + self.blocks + self.sizes

    @cached_property
    def _sizes(self) -> array[int]:
        return _little(array("I", self.sizes))

    @cached_property
    def _ends(self) -> array[int]:
        return array("Q", itertools.accumulate(self._sizes, initial=0))

    @property
    def packed_length(self) -> int:
        """Bytes of the packed sector image."""
        return self._ends[-1]

    def place_of(self, run: range) -> tuple[int, int]:
        """Return where blocks that lie side by side are in the packed sector image.

        Returns:
            Where they begin, and how many bytes they have.
        """
        begin = self._ends[run.start]
        return begin, self._ends[run.stop] - begin

    def packed_size(self, run: range) -> int:
        """Return the bytes of packed blocks that lie side by side."""
        return self.place_of(run)[1]

    def unpacked(self, run: range, packed: bytes | memoryview) -> tuple[bytes, list[int]]:
        """Unpack blocks that lie side by side, and verify them.

        Args:
            run: Their numbers.
            packed: Their bytes as the registry has them, `packed_size` of them.

        Returns:
            The blocks, one after the other, and which of them are not what they must be: then the
            bytes are of no use.
        """
        view, pieces, wrong = memoryview(packed), list[bytes | memoryview](), list[int]()
        begin, unpacker = self._ends[run.start], zstandard.ZstdDecompressor()
        for number in run:
            piece = view[self._ends[number] - begin : self._ends[number + 1] - begin]
            block = _unpacked(unpacker, piece, self.block_size(number))
            if block is None or hashlib.sha256(block).digest() != self.block_digest(number):
                wrong.append(number)
            else:
                pieces.append(block)
        return b"".join(pieces), wrong

    def unpack(self, stream: IO[bytes], target: IO[bytes]) -> None:
        """Unpack a whole sector image; where it is empty, so is the file.

        Args:
            stream: The packed sector image.
            target: An empty file.

        Raises:
            FleetfootError: It is not what this table says.
        """
        for run in self._in_sectors():
            data, wrong = self.unpacked(run, _read(stream, self.packed_size(run)))
            if wrong:
                raise FleetfootError(f"blocks {wrong} of {hex_digest(self.image)} are others")
            if data.count(0) == len(data):
                target.seek(len(data), os.SEEK_CUR)
            else:
                target.write(data)
        target.truncate(self.length)

    def _in_sectors(self) -> Iterator[range]:
        size = self.sector // self.block
        for first in range(0, self.block_count, size):
            yield range(first, min(first + size, self.block_count))

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

    def wrong(self, first: int, data: bytes | bytearray | memoryview) -> list[int]:
        """Return which blocks are not what they must be.

        Args:
            first: Number of the block that `data` begins with.
            data: Whole blocks, one after the other.
        """
        return [
            number
            for number, piece in enumerate(_pieces_of(data), first)
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
        """Compare a packed sector image with its table; yield what is wrong, a line each."""
        whole, length, wrong, sectors = hashlib.sha256(), 0, list[int](), list[int]()
        for number, run in enumerate(self._in_sectors()):
            packed = _read(stream, self.packed_size(run))
            whole.update(packed)
            length += len(packed)
            data, others = self.unpacked(run, packed)
            wrong += others
            if others or hashlib.sha256(data).digest() != self.sector_digest(number):
                sectors.append(number)
        while piece := stream.read(self.sector):
            whole.update(piece)
            length += len(piece)
        if length != self.packed_length:
            yield f"the sector image has {length} bytes, its table says {self.packed_length}"
        if whole.digest() != self.image:
            yield f"the sector image is {hex_digest(whole.digest())}, not {hex_digest(self.image)}"
        for name, differ, one in (
            ("sectors", sectors, self.sector),
            ("blocks", wrong, self.block),
        ):
            if differ:
                some = ", ".join(map(str, differ[:_NAMED]))
                more = ", ..." if len(differ) > _NAMED else ""
                yield f"{len(differ)} {name} of {one} bytes differ from the table: {some}{more}"


def _plain(stream: IO[bytes]) -> Iterator[tuple[bytes, Iterable[bytes | memoryview]]]:
    while sector := stream.read(SECTOR):
        yield sector, _pieces_of(sector)


def _packed(stream: IO[bytes]) -> Iterator[tuple[bytes, Iterable[bytes | memoryview]]]:
    """Pack sectors on several processors; yield them in their order."""
    count = min(len(os.sched_getaffinity(0)), _PACKERS)
    waiting: deque[tuple[bytes, Future[list[bytes | memoryview]]]] = deque()
    with ThreadPoolExecutor(count) as pool:
        while sector := stream.read(SECTOR):
            waiting.append((sector, pool.submit(_pack, sector)))
            if len(waiting) > count:
                first, done = waiting.popleft()
                yield first, done.result()
        while waiting:
            first, done = waiting.popleft()
            yield first, done.result()


def _pack(sector: bytes) -> list[bytes | memoryview]:
    packer = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False, write_content_size=True)
    packed = list[bytes | memoryview]()
    for block in _pieces_of(sector):
        shorter = packer.compress(block)
        packed.append(shorter if len(shorter) < len(block) else block)
    return packed


def _unpacked(
    unpacker: zstandard.ZstdDecompressor, piece: memoryview, size: int
) -> bytes | memoryview | None:
    """Return a block of `size` bytes, or None where it is none."""
    if len(piece) == size:
        return piece
    if piece[: len(_FRAME)] != _FRAME:
        return None
    try:
        # It says itself how much memory it wants: no more than a block has.
        if zstandard.frame_content_size(piece) != size:
            return None
        return unpacker.decompress(piece, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError:
        return None


def _pieces_of(data: bytes | bytearray | memoryview) -> Iterator[memoryview]:
    view = memoryview(data)
    return (view[start : start + BLOCK] for start in range(0, len(view), BLOCK))


def _little(numbers: array[int]) -> array[int]:
    """Turn numbers into how tables have them, or back."""
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _read(stream: IO[bytes], count: int) -> bytes:
    """Return so many bytes, or fewer where it ends before: registries give less at once."""
    pieces = list[bytes]()
    while count and (piece := stream.read(count)):
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


def _pieces(length: int, size: int) -> int:
    return -(-length // size)


def _refused(why: str) -> FleetfootError:
    return FleetfootError(
        f"the table of a sector image is not usable: {why}",
        "the layer is not mounted lazily",
        "convert the image again (`fleetfoot lazy convert`)",
    )
