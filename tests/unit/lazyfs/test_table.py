"""The table: what follows from a sector image, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import os
import struct
import tracemalloc
from array import array

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from fleetfoot.errors import FleetfootError
from fleetfoot.lazyfs.table import BLOCK, LARGEST, SECTOR, Table

IMAGE = os.urandom(SECTOR + 3 * BLOCK + 5)


@pytest.fixture(scope="module")
def table() -> Table:
    return Table.of(io.BytesIO(IMAGE))


def test_every_piece_has_the_digest_of_its_bytes(table: Table) -> None:
    assert (table.length, table.sector_count, table.block_count) == (len(IMAGE), 2, 68)
    assert table.image == hashlib.sha256(IMAGE).digest()
    assert table.sector_digest(1) == hashlib.sha256(IMAGE[SECTOR:]).digest()
    assert table.block_digest(1) == hashlib.sha256(IMAGE[BLOCK : 2 * BLOCK]).digest()
    assert table.block_digest(67) == hashlib.sha256(IMAGE[-5:]).digest()
    assert [table.block_size(n) for n in (0, 66, 67)] == [BLOCK, BLOCK, 5]


def test_it_is_read_as_it_was_written(table: Table) -> None:
    data = table.dump()
    assert Table.parse(data) == table
    assert len(data) == Table.size_for(len(IMAGE))


@given(offset=st.integers(0, len(IMAGE) - 1), count=st.integers(1, 1 << 21))
def test_blocks_hold_what_is_asked_for(offset: int, count: int) -> None:
    table = Table(len(IMAGE), b"", b"", b"", b"")
    count = min(count, len(IMAGE) - offset)
    blocks = table.blocks_of(offset, count)
    assert blocks.start * BLOCK <= offset < (blocks.start + 1) * BLOCK
    assert (blocks.stop - 1) * BLOCK < offset + count <= blocks.stop * BLOCK
    assert blocks.stop <= table.block_count


#: Zeros, what packs well, what does not, and a short end.
MIXED = bytes(2 * BLOCK) + b"serverless " * 3 * 5958 + os.urandom(SECTOR) + b"end" * 1000


@pytest.fixture(scope="module")
def packed() -> tuple[Table, bytes]:
    target = io.BytesIO()
    table = Table.of(io.BytesIO(MIXED), target)
    return table, target.getvalue()


def test_what_is_packed_is_shorter_and_the_same(packed: tuple[Table, bytes]) -> None:
    table, data = packed
    assert table.image == hashlib.sha256(data).digest()
    assert table.length == len(MIXED)
    assert table.packed_length == len(data) < len(MIXED) - 4 * BLOCK
    assert Table.parse(table.dump()) == table
    table.unpack(io.BytesIO(data), plain := io.BytesIO())
    assert plain.getvalue() == MIXED
    assert list(table.check(io.BytesIO(data))) == []
    for run in (range(1), range(1, 4), range(60, 64), range(60, table.block_count)):
        offset, count = table.place_of(run)
        assert count == table.packed_size(run)
        wanted = MIXED[run.start * BLOCK : run.stop * BLOCK]
        assert table.unpacked(run, data[offset : offset + count]) == (wanted, [])


def test_packing_depends_on_the_content_alone(
    packed: tuple[Table, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(3))
    target = io.BytesIO()
    assert Table.of(io.BytesIO(MIXED), target) == packed[0]
    assert target.getvalue() == packed[1]


def test_a_packed_block_that_was_damaged_is_named(packed: tuple[Table, bytes]) -> None:
    table, data = packed
    changed = bytearray(data)
    changed[table.place_of(range(2, 3))[0] + 9] ^= 1
    assert table.unpacked(range(4), changed)[1] == [2]
    assert table.unpacked(range(4), b"")[1] == [0, 1, 2, 3]
    assert "blocks of" in "\n".join(table.check(io.BytesIO(changed)))
    with pytest.raises(FleetfootError, match="others"):
        table.unpack(io.BytesIO(changed), io.BytesIO())


def test_a_block_may_not_become_more_than_a_block(packed: tuple[Table, bytes]) -> None:
    table, _ = packed
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    sizes = array("I", table.sizes)
    sizes[0] = len(bomb)
    hostile = dataclasses.replace(table, sizes=sizes.tobytes())
    tracemalloc.start()
    try:
        assert hostile.unpacked(range(1), bomb)[1] == [0]
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


PLAIN = b"plain" * 1000
FRAME = zstandard.ZstdCompressor().compress(PLAIN)


@pytest.mark.parametrize(
    "piece",
    [
        zstandard.ZstdCompressor(write_content_size=False).compress(PLAIN),
        b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip",
        b"\x27\xb5\x2f\xfd" + FRAME[4:],
        FRAME + FRAME,
        FRAME + b"x",
        FRAME[:-1],
        FRAME[:4],
        b"",
    ],
    ids=["no size", "skipped", "former", "two", "behind", "cut", "head", "nothing"],
)
def test_what_is_no_frame_of_a_block_is_refused(piece: bytes) -> None:
    digests = hashlib.sha256(PLAIN).digest()
    sizes = array("I", [len(FRAME)]).tobytes()
    table = Table(len(PLAIN), b"", digests, digests, sizes)
    assert table.unpacked(range(1), FRAME) == (PLAIN, [])
    sizes = array("I", [len(piece)]).tobytes()
    assert dataclasses.replace(table, sizes=sizes).unpacked(range(1), piece)[1] == [0]


@pytest.mark.parametrize("end", [5, 0])
def test_tables_of_the_first_version_are_read(end: int) -> None:
    image = IMAGE[: SECTOR + 3 * BLOCK + end]
    table = Table.of(io.BytesIO(image))
    data = bytearray(table.dump()[: -len(table.sizes)])
    data[7] = 1
    assert Table.parse(bytes(data)) == table
    with pytest.raises(FleetfootError, match="follow from its head"):
        Table.parse(bytes(data[:-1]))


@pytest.mark.parametrize(("block", "size"), [(0, 0), (1, BLOCK + 1), (-1, BLOCK)])
def test_sizes_that_cannot_be_are_refused(table: Table, block: int, size: int) -> None:
    sizes = array("I", table.sizes)
    sizes[block] = size
    changed = dataclasses.replace(table, sizes=sizes.tobytes())
    with pytest.raises(FleetfootError, match="packed block"):
        Table.parse(changed.dump())


def test_wrong_blocks_are_named(table: Table) -> None:
    data = bytearray(IMAGE[2 * BLOCK : 5 * BLOCK])
    assert table.wrong(2, data) == []
    data[BLOCK] ^= 1
    assert table.wrong(2, data) == [3]
    assert table.wrong(66, IMAGE[66 * BLOCK :]) == []


def test_a_changed_image_is_told_by_pieces(table: Table) -> None:
    assert list(table.check(io.BytesIO(IMAGE))) == []
    changed = bytearray(IMAGE)
    changed[SECTOR + BLOCK] ^= 1
    told = "\n".join(table.check(io.BytesIO(changed)))
    assert "the sector image is sha256:" in told
    assert f"1 sectors of {SECTOR} bytes differ from the table: 1" in told
    assert f"1 blocks of {BLOCK} bytes differ from the table: 65" in told
    assert f"has {len(IMAGE) - 1} bytes" in "\n".join(table.check(io.BytesIO(IMAGE[:-1])))


@pytest.mark.parametrize(
    ("offset", "form", "value", "said"),
    [
        (0, "<8s", b"somethin", "does not begin"),
        (8, "<I", 0, "sectors of 0"),
        (12, "<I", 1, "blocks of 1 bytes"),
        (16, "<Q", 0, "a length of 0"),
        (16, "<Q", LARGEST + 1, f"a length of {LARGEST + 1}"),
        (16, "<Q", (1 << 64) - 1, "a length of"),
        (16, "<Q", LARGEST, "follow from its head"),
    ],
)
def test_a_head_that_cannot_be_is_refused(
    table: Table, offset: int, form: str, value: object, said: str
) -> None:
    data = bytearray(table.dump())
    struct.pack_into(form, data, offset, value)
    with pytest.raises(FleetfootError, match=said):
        Table.parse(bytes(data))


@pytest.mark.parametrize("cut", [0, 50, -1])
def test_a_table_that_was_cut_off_is_refused(table: Table, cut: int) -> None:
    with pytest.raises(FleetfootError, match="it has"):
        Table.parse(table.dump()[:cut])


def test_a_table_with_more_behind_it_is_refused(table: Table) -> None:
    with pytest.raises(FleetfootError, match="follow from its head"):
        Table.parse(table.dump() + b"\0")


def test_what_is_named_is_there_and_named_once() -> None:
    table = Table.of(io.BytesIO(bytes(10 * BLOCK)))
    assert table.within([range(3, 5), range(1), range(4, 7), range(8, 20)]) == [
        range(3, 5),
        range(1),
        range(5, 7),
        range(8, 10),
    ]
    assert table.within([range(1, 2)] * 99) == [range(1, 2)]
    assert table.within([range(10, 11)]) == []
    begun = table.within(range(n % 9, n % 9 + 1) for n in itertools.count())
    assert len(begun) == 9, "of what does not end"
