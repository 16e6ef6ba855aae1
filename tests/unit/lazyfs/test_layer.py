"""Reads of a layer: verified, fetched once, and patient while its registry is away."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

from fleetfoot.errors import FleetfootError
from fleetfoot.lazyfs.distribution import UnreachableError
from fleetfoot.lazyfs.node import layer as module
from fleetfoot.lazyfs.node.layer import Counts, Layer
from fleetfoot.lazyfs.node.server import Server, _spent_by_others
from fleetfoot.lazyfs.node.store import Cache, Folder, Place
from fleetfoot.lazyfs.table import BLOCK, SECTOR, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

IMAGE = os.urandom(SECTOR + 5 * BLOCK + 4096)
TABLE = Table.of(io.BytesIO(IMAGE))
NAME = hashlib.sha256(TABLE.dump()).hexdigest()


class Origin:
    """A registry that gives what is asked for, and can be made to do otherwise."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.before: Callable[[], None] = lambda: None
        self.spoil: Callable[[bytes], bytes] = lambda data: data

    def range(self, digest: str, offset: int, count: int) -> bytes:
        assert digest == f"sha256:{TABLE.image.hex()}"
        self.asked.append((offset, count))
        self.before()
        return self.spoil(IMAGE[offset : offset + count])


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder.of(tmp_path, NAME)
    made.add(TABLE.dump(), Place("registry.example", "image"))
    return made


@pytest.fixture
def origin() -> Origin:
    return Origin()


@pytest.fixture
def layer(folder: Folder, origin: Origin, monkeypatch: pytest.MonkeyPatch) -> Iterator[Layer]:
    monkeypatch.setattr(module, "_PAUSES", (0.01,))
    cache = Cache(folder, TABLE)
    yield Layer(TABLE, cache, lambda: [origin], counts=Counts(), deadline=5, log=lambda _: None)
    cache.close()


def again(folder: Folder, origin: Origin) -> Layer:
    """Return the layer as a process after this one has it."""
    cache = Cache(folder, TABLE)
    return Layer(TABLE, cache, lambda: [origin], counts=Counts(), deadline=5, log=lambda _: None)


@pytest.mark.parametrize(
    ("offset", "count"),
    [(0, 1), (BLOCK - 1, 2), (3 * BLOCK, BLOCK), (SECTOR - 5, 10), (len(IMAGE) - 4096, 4096)],
)
def test_bytes_are_those_of_the_image(layer: Layer, offset: int, count: int) -> None:
    for _ in range(2):  # fetched, then from here
        assert layer.read(offset, count) == IMAGE[offset : offset + count]


def test_a_cold_read_fetches_what_lies_around_it_and_no_more(layer: Layer, origin: Origin) -> None:
    layer.read(10 * BLOCK + 5, 100)
    assert origin.asked == [(8 * BLOCK, 4 * BLOCK)]
    layer.read(10 * BLOCK, BLOCK)
    assert len(origin.asked) == 1
    assert layer.counts["bytes_fetched"] == 4 * BLOCK
    assert layer.touched == [10]
    assert (layer.counts["blocks_hit"], layer.counts["blocks_missed"]) == (1, 1)


def test_reads_that_follow_each_other_read_ahead(layer: Layer, origin: Origin) -> None:
    for block in range(20):
        layer.read(block * BLOCK, BLOCK)
    assert len(origin.asked) <= 3
    assert layer.touched == list(range(20))


def test_neighbours_come_with_one_request(layer: Layer, origin: Origin) -> None:
    layer.read(6 * BLOCK, BLOCK)
    assert layer.read(0, 9 * BLOCK) == IMAGE[: 9 * BLOCK]
    assert origin.asked[1:] == [(0, 4 * BLOCK), (8 * BLOCK, 4 * BLOCK)]


def test_what_lies_apart_is_no_request_that_a_read_waits_for(layer: Layer, origin: Origin) -> None:
    layer.fetch(range(5, 6))
    layer.read(6 * BLOCK, BLOCK)
    assert origin.asked == [(5 * BLOCK, BLOCK), (6 * BLOCK, 2 * BLOCK)]
    assert layer.read(4 * BLOCK, BLOCK) == IMAGE[4 * BLOCK :][:BLOCK]


def test_a_block_is_fetched_once_however_many_wait(layer: Layer, origin: Origin) -> None:
    entered, go = threading.Event(), threading.Event()

    def slow() -> None:
        entered.set()
        go.wait(10)

    origin.before, got = slow, list[bytes]()

    def read() -> None:
        got.append(layer.read(4 * BLOCK, 4096))

    threads = [threading.Thread(target=read) for _ in range(8)]
    threads[0].start()
    assert entered.wait(10)
    for thread in threads[1:]:  # all of them find it on its way
        thread.start()
    go.set()
    for thread in threads:
        thread.join(10)
    assert got == [IMAGE[4 * BLOCK :][:4096]] * 8
    assert origin.asked == [(4 * BLOCK, 4 * BLOCK)]


def test_a_read_that_failed_keeps_nobody_waiting(
    folder: Folder, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAUSES", (0.01,))
    cache = Cache(folder, TABLE)
    layer = Layer(TABLE, cache, lambda: [origin], counts=Counts(), deadline=0, log=lambda _: None)
    layer.read(6 * BLOCK, BLOCK)  # in the middle of what is read next: two requests

    def away() -> None:
        raise UnreachableError("away")

    origin.before = away
    for _ in range(2):
        with pytest.raises(OSError, match="given up"):
            layer.read(0, 9 * BLOCK)
    origin.before = lambda: None
    assert layer.read(0, 9 * BLOCK) == IMAGE[: 9 * BLOCK]


def test_what_was_fetched_outlives_the_process(
    layer: Layer, folder: Folder, origin: Origin
) -> None:
    layer.read(0, 3 * BLOCK)
    other = again(folder, origin)
    assert other.read(0, 3 * BLOCK) == IMAGE[: 3 * BLOCK]
    assert len(origin.asked) == 1
    assert other.cache.count == 4


def test_a_block_that_was_damaged_in_the_cache_is_fetched_again(
    layer: Layer, folder: Folder, origin: Origin
) -> None:
    layer.read(0, 2 * BLOCK)
    with folder.data.open("r+b") as file:
        file.seek(BLOCK + 7)
        file.write(b"damage")
    other = again(folder, origin)
    assert other.read(0, 2 * BLOCK) == IMAGE[: 2 * BLOCK]
    assert other.counts["corrupted_cached"] == 1
    assert origin.asked[1:] == [(BLOCK, BLOCK)]


def test_packed_blocks_are_unpacked_before_they_are_kept(tmp_path: Path) -> None:
    plain, target = b"".join(bytes([n]) * BLOCK for n in range(40)) + b"end", io.BytesIO()
    table = Table.of(io.BytesIO(plain), target)
    folder = Folder.of(tmp_path, hashlib.sha256(table.dump()).hexdigest())
    folder.add(table.dump(), Place("registry.example", "image"))
    asked: list[str] = []
    pack = b"".join(
        target.getvalue()[begin : begin + count]
        for begin, count in map(table.place_of, (range(30, 33), range(7, 8)))
    )
    blobs = {f"sha256:{table.image.hex()}": target.getvalue(), "pack": pack}

    class Packed:
        def range(self, digest: str, offset: int, count: int) -> bytes:
            asked.append(digest)
            return blobs[digest][offset : offset + count]

    cache = Cache(folder, table)
    layer = Layer(table, cache, lambda: [Packed()], counts=Counts(), deadline=5, log=print)
    assert layer.fetch_packed([range(30, 33), range(7, 8)], "pack", 0)
    assert layer.counts["bytes_fetched"] == len(pack) < BLOCK
    assert layer.read(31 * BLOCK, BLOCK) == plain[31 * BLOCK :][:BLOCK]
    assert asked == ["pack"]
    assert layer.read(5, len(plain) - 5) == plain[5:]
    assert layer.counts["bytes_fetched"] == len(target.getvalue())
    assert folder.data.read_bytes() == plain


def test_a_block_that_was_damaged_on_the_way_is_fetched_again(layer: Layer, origin: Origin) -> None:
    spoiled = iter([b"x" * BLOCK + IMAGE[BLOCK : 4 * BLOCK]])
    origin.spoil = lambda data: next(spoiled, data)
    assert layer.read(0, BLOCK) == IMAGE[:BLOCK]
    assert layer.counts["corrupted_fetched"] == 1


def test_a_registry_that_has_something_else_gives_an_error(layer: Layer, origin: Origin) -> None:
    origin.spoil = lambda data: b"x" * len(data)
    with pytest.raises(OSError, match="came damaged") as told:
        layer.read(0, BLOCK)
    assert told.value.errno == errno.EIO
    assert not layer.cache.has(0)
    origin.spoil = lambda data: data
    assert layer.read(0, BLOCK) == IMAGE[:BLOCK]  # nothing need be restarted


def test_a_registry_that_is_away_is_waited_for(layer: Layer, origin: Origin) -> None:
    attempts = iter([True] * 5)

    def away() -> None:
        if next(attempts, False):
            raise UnreachableError("away")

    origin.before = away
    assert layer.read(0, BLOCK) == IMAGE[:BLOCK]
    assert layer.counts["errors_unreachable"] == 5
    assert layer.counts["reads_failed"] == 0


def test_a_registry_that_is_away_for_too_long_gives_an_error(
    folder: Folder, origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAUSES", (0.01,))

    def away() -> None:
        raise UnreachableError("away")

    origin.before, said = away, list[str]()
    cache = Cache(folder, TABLE)
    layer = Layer(TABLE, cache, lambda: [origin], counts=Counts(), deadline=0.1, log=said.append)
    with pytest.raises(OSError, match="given up after") as told:
        layer.read(0, BLOCK)
    assert told.value.errno == errno.EIO
    assert layer.counts["reads_failed"] == 1
    assert any("a read fails" in line for line in said)
    origin.before = lambda: None
    assert layer.read(0, BLOCK) == IMAGE[:BLOCK]


def test_another_repository_stands_in(folder: Folder, origin: Origin) -> None:
    def refuses() -> None:
        raise FleetfootError("denied")

    first = Origin()
    first.before = refuses
    layer = Layer(
        TABLE,
        Cache(folder, TABLE),
        lambda: [first, origin],
        counts=Counts(),
        deadline=5,
        log=lambda _: None,
    )
    assert layer.read(0, 10) == IMAGE[:10]
    assert layer.counts["errors_refused"] == 1


def test_a_full_disk_passes_through(tmp_path: Path, origin: Origin) -> None:
    (small := tmp_path / "small").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], check=True)
    try:
        folder = Folder.of(small, NAME)
        folder.add(TABLE.dump(), Place("registry.example", "image"))
        layer = again(folder, origin)
        for block in range(TABLE.block_count):
            start = block * BLOCK
            size = TABLE.block_size(block)
            assert layer.read(start, size) == IMAGE[start : start + size]
        assert layer.counts["uncached"] > 0
        assert 0 < layer.cache.count < TABLE.block_count
        layer.cache.close()
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_folder_that_was_removed_and_came_again_is_another(
    folder: Folder, tmp_path: Path
) -> None:
    server = Server(root=tmp_path)
    first = server.layer(NAME)
    first.cache.write(0, IMAGE[:BLOCK])
    assert server.layer(NAME) is first
    folder.remove()
    assert not first.cache.is_current
    server._forget()
    folder.add(TABLE.dump(), Place("registry.example", "image"))
    again_ = server.layer(NAME)
    assert again_ is not first
    assert again_.cache.count == 0


def test_what_is_complete_is_believed_until_the_machine_is_started_anew(folder: Folder) -> None:
    assert not folder.is_complete
    folder.mark_complete()
    assert folder.is_complete
    (folder.path / "complete").write_text("another boot")
    assert not folder.is_complete


def test_the_background_completes_a_layer(layer: Layer, folder: Folder, tmp_path: Path) -> None:
    server = Server(root=tmp_path, rate=1e9)
    server._layers[NAME] = layer
    while not folder.is_complete:
        server._complete_something()
    assert folder.data.read_bytes() == IMAGE


def test_the_background_rests_while_the_disk_is_full(
    layer: Layer, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cache, "write", lambda *_: False)
    server = Server(root=tmp_path, rate=1e9)
    server._layers[NAME] = layer
    for _ in range(3):
        server._complete_something()
    assert layer.counts["uncached"] == 16
    assert not folder.is_complete


@pytest.mark.parametrize(("watermark", "room"), [(0.0, False), (1.0, True)])
def test_the_background_keeps_below_the_watermark(
    tmp_path: Path, watermark: float, room: bool
) -> None:
    assert Server(root=tmp_path, watermark=watermark)._has_room() == room


def test_what_was_evicted_is_fetched_again(layer: Layer, folder: Folder, origin: Origin) -> None:
    layer.read(0, 2 * BLOCK)
    layer.read(8 * BLOCK, BLOCK)
    before = folder.data.stat().st_blocks
    assert layer.cache.evict() == 8
    assert folder.data.stat().st_blocks < before
    assert folder.data.stat().st_size == len(IMAGE)
    assert layer.cache.count == 0
    asked = len(origin.asked)
    assert layer.read(0, 2 * BLOCK) == IMAGE[: 2 * BLOCK]
    assert len(origin.asked) == asked + 1
    assert len(list(layer.missing())) == TABLE.block_count - 4


def test_what_is_evicted_while_it_is_read_is_read_again(
    layer: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer.read(0, BLOCK)
    read, times = Cache.read, []

    def evicted(cache: Cache, offset: int, count: int) -> bytes:
        times.append(offset)
        if len(times) == 1:
            cache.evict()
        return read(cache, offset, count)  # zeros, or nothing

    monkeypatch.setattr(Cache, "read", evicted)
    assert layer.read(0, BLOCK) == IMAGE[:BLOCK]


def test_what_is_evicted_while_it_comes_is_not_believed(
    layer: Layer, folder: Folder, origin: Origin
) -> None:
    write = os.pwrite

    def evicted(file: int, data: bytes, offset: int) -> int:
        written = write(file, data, offset)
        layer.cache.evict()
        return written

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("fleetfoot.lazyfs.node.store.os.pwrite", evicted)
        assert layer.read(0, BLOCK) == IMAGE[:BLOCK]
    assert layer.cache.count == 0
    assert layer.read(0, BLOCK) == IMAGE[:BLOCK]
    assert again(folder, origin).read(0, BLOCK) == IMAGE[:BLOCK]


def test_a_layer_that_is_mounted_from_its_file_stays_on_a_full_disk(
    layer: Layer, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer.read(0, BLOCK)
    folder.mark_complete()
    server = Server(root=tmp_path, evict=0)
    server._layers[NAME] = layer
    server._make_room()
    assert layer.cache.count, "it was read a moment ago"
    monkeypatch.setattr("fleetfoot.lazyfs.node.server._IDLE", -1)
    monkeypatch.setattr("fleetfoot.lazyfs.node.server.mounted", lambda: {"/fs": str(folder.data)})
    server._make_room()
    assert layer.cache.count, "it is mounted from its file"
    monkeypatch.setattr("fleetfoot.lazyfs.node.server.mounted", dict)
    server._make_room()
    assert not layer.cache.count
    assert not folder.is_complete
    assert server.counts["blocks_evicted"] == 4


def test_layers_leave_a_full_disk_in_the_order_of_their_last_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin, server = Origin(), Server(root=tmp_path, evict=0)
    for number, read_at in enumerate((2.0, 1.0, 3.0)):
        other = Folder.of(tmp_path, f"{number:064}")
        other.add(TABLE.dump(), Place("registry.example", "image"))
        made = again(other, origin)
        made.read(0, BLOCK)
        made.read_at = read_at
        server._layers[other.name] = made

    def too_full(*_: object) -> bool:
        return sum(each.cache.count for each in server._layers.values()) > 4

    monkeypatch.setattr("fleetfoot.lazyfs.node.server._is_fuller", too_full)
    monkeypatch.setattr("fleetfoot.lazyfs.node.server.time.monotonic", lambda: 1000.0)
    server._make_room()
    assert [each.cache.count for each in server._layers.values()] == [0, 0, 4]


def test_what_is_evicted_just_before_it_is_told_is_not_complete(
    layer: Layer, folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(root=tmp_path, rate=1e9)
    server._layers[NAME] = layer
    alone, times = Folder.alone, []

    def evicted(of: Folder) -> contextlib.AbstractContextManager[None]:
        times.append(layer.cache.evict())
        return alone(of)

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "alone", evicted)
        while not times:
            server._complete_something()
    assert times == [TABLE.block_count]
    assert not folder.is_complete
    while not folder.is_complete:
        server._complete_something()
    assert folder.data.read_bytes() == IMAGE


def test_a_folder_that_comes_again_is_not_complete(folder: Folder, tmp_path: Path) -> None:
    folder.mark_complete()
    Folder.of(tmp_path, NAME).add(TABLE.dump(), Place("registry.example", "image"))
    assert not folder.is_complete


def test_the_background_leaves_starts_alone_and_never_starves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("fleetfoot.lazyfs.node.server.time.monotonic", lambda: now)
    server, went_on = Server(root=tmp_path), []
    assert server._is_quiet()
    for second in range(600):
        now += 1
        server.counts.add("blocks_missed")
        if server._is_quiet():
            went_on.append(second)
    assert went_on == [299, 599]
    now += 4
    assert not server._is_quiet()
    now += 1
    assert server._is_quiet()


def test_the_background_waits_where_a_start_computes(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = spent = 1000.0
    monkeypatch.setattr("fleetfoot.lazyfs.node.server.time.monotonic", lambda: now)
    monkeypatch.setattr("fleetfoot.lazyfs.node.server._spent_by_others", lambda: spent)
    server = Server(root=tmp_path)

    def completes_after(busy: float) -> bool:
        nonlocal now, spent
        now, spent = now + 1, spent + busy
        return server._is_quiet() and server._complete_something()

    monkeypatch.setattr(server, "_complete", lambda _: True)  # a little of it
    assert not completes_after(0), "nothing has been used yet"
    server.layer(folder.name)
    assert [completes_after(busy) for busy in (0.9, 0.5, 1.5, 0.1)] == [False, True, False, True]
    computing = [completes_after(1.0) for _ in range(130)]
    assert computing.index(True) == 115, "two minutes from its first use"
    assert all(computing[115:])


def test_what_processors_spent_on_others_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stat := tmp_path / "stat").write_text("cpu  100 20 30 9999 999 4 6 50 0 0\ncpu0 1 2 3\n")
    monkeypatch.setattr("fleetfoot.lazyfs.node.server._STAT", stat)
    monkeypatch.setattr("fleetfoot.lazyfs.node.server.time.process_time", lambda: 0.5)
    assert _spent_by_others() == 160 / os.sysconf("SC_CLK_TCK") - 0.5


def test_layers_with_the_same_content_share_a_folder(folder: Folder, tmp_path: Path) -> None:
    other = Folder.of(tmp_path, NAME)
    other.add(TABLE.dump(), Place("registry.example", "other"))
    assert list(Folder.all(tmp_path)) == [folder]
    assert [place.name for place in folder.places()] == ["other", "image"]


@pytest.mark.parametrize("name", ["", "..", "../../etc", "0" * 63, "A" * 64])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(FleetfootError, match="no name of a sector image"):
        Folder.of(tmp_path, name)
    with pytest.raises(FleetfootError):
        Server(root=tmp_path).layer(name)


def test_the_table_of_another_image_is_refused(tmp_path: Path) -> None:
    other = Folder.of(tmp_path, "0" * 64)
    other.add(TABLE.dump(), Place("registry.example", "image"))
    with pytest.raises(FleetfootError, match="is another's"):
        other.table()
