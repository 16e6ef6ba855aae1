"""What a trace names is fetched ahead, and told: now and then, and not while a read waits."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fleetfoot.errors import FleetfootError
from fleetfoot.lazyfs.node.layer import Layer
from fleetfoot.lazyfs.node.server import Server
from fleetfoot.lazyfs.node.store import Folder, Place
from fleetfoot.lazyfs.table import BLOCK, Table

HALF = BLOCK // 2
IMAGE = b"".join(os.urandom(HALF) + bytes(HALF) for _ in range(40)) + os.urandom(4096)
PACKED = io.BytesIO()
TABLE = Table.of(io.BytesIO(IMAGE), PACKED)
#: Where blocks are in the packed image: the numbers by their beginnings, and by their ends.
PLACES = [TABLE.place_of(range(block, block + 1)) for block in range(TABLE.block_count)]
BEGINS = {begin: block for block, (begin, _) in enumerate(PLACES)}
ENDS = {begin + count: block for block, (begin, count) in enumerate(PLACES)}
NAME = hashlib.sha256(TABLE.dump()).hexdigest()


class Origin:
    """A registry that gives a block only when it may."""

    def __init__(self) -> None:
        self.may = {block: threading.Event() for block in range(TABLE.block_count)}
        self.asked: list[range] = []
        self.packs: dict[str, bytes] = {}
        self.asked_packs: list[tuple[int, int]] = []

    def gives(self, *blocks: int) -> None:
        for block in blocks:
            self.may[block].set()

    def range(self, digest: str, offset: int, count: int) -> bytes:
        if digest in self.packs:
            self.asked_packs.append((offset, count))
            return self.packs[digest][offset : offset + count]
        run = range(BEGINS[offset], ENDS[offset + count] + 1)
        self.asked.append(run)
        for block in run:
            assert self.may[block].wait(10)
        return PACKED.getvalue()[offset : offset + count]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder.of(tmp_path, NAME)
    made.add(TABLE.dump(), Place("registry.example", "image"))
    return made


@pytest.fixture
def origin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
    made = Origin()
    monkeypatch.setattr(Server, "_origins", lambda *_: [made])
    yield made
    made.gives(*made.may)  # nobody is left waiting


def wait(check: Callable[[], object]) -> None:
    """Wait until something is so."""
    until = time.monotonic() + 10
    while not check():
        assert time.monotonic() < until
        time.sleep(0.005)


def passes(server: Server, seconds: float = 10) -> None:
    """Have time pass since the layer's trace was begun; after the first ten it is told."""
    server._aheads[NAME].begun = time.monotonic() - seconds
    server._tell_ahead()


def reading(layer: Layer, block: int) -> threading.Thread:
    """Begin to read a block; it waits until the registry gives it."""
    thread = threading.Thread(target=layer.read, args=(block * BLOCK, 4096))
    thread.start()
    wait(lambda: layer.waits)
    return thread


def test_what_came_is_told_after_twice_as_long_each_time(
    folder: Folder, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.set_trace([range(n, n + 1) for n in (30, 10, 12, 11, 20)])
    server, told = Server(root=tmp_path), list[int]()
    monkeypatch.setattr(
        Folder, "set_ahead", lambda _, runs: told.append(sum(len(run) for run in runs))
    )
    layer = server.layer(NAME)
    for second, block in ((9, 30), (11, 10), (19, 12), (21, 11), (39, 20)):
        origin.gives(block)
        wait(lambda block=block: layer.cache.has(block))
        if block != 20:
            passes(server, second)
    assert told == [2, 4], "after 10 and 20 seconds"
    wait(lambda: not server._aheads[NAME].threads)
    passes(server, 39)
    assert told == [2, 4]
    passes(server, 41)
    assert told == [2, 4, 5]
    assert not server._aheads


def test_what_is_told_is_what_came_of_the_trace(
    folder: Folder, origin: Origin, tmp_path: Path
) -> None:
    folder.set_trace([range(30, 32), range(10, 12), range(40, 60), range(500, 501)])
    server = Server(root=tmp_path)
    layer = server.layer(NAME)
    origin.gives(*range(4), 10, 11, 40)
    layer.read(0, 4096)  # nobody's business but the one's who reads
    wait(lambda: layer.cache.has(10) and layer.cache.has(40))
    passes(server)
    assert folder.ahead() == [range(10, 12), range(40, 41)]
    assert layer.touched == [0, 10, 11, 40], "these are not seen when they are read"
    assert folder.data.read_bytes()[10 * BLOCK : 12 * BLOCK] == IMAGE[10 * BLOCK : 12 * BLOCK]


def test_nothing_is_told_where_nothing_came(folder: Folder, origin: Origin, tmp_path: Path) -> None:
    folder.set_trace([range(5, 6), range(7, 8)])
    server = Server(root=tmp_path)
    layer = server.layer(NAME)
    passes(server, 15)
    assert not (folder.path / "ahead.json").exists()
    origin.gives(5)
    wait(lambda: layer.cache.has(5))
    passes(server, 25)
    before = folder.news
    passes(server, 45)
    passes(server, 495)
    assert folder.news == before


def test_nothing_is_told_while_a_read_waits(
    folder: Folder, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleetfoot.lazyfs.node.server._HELD", 0.2)
    folder.set_trace([range(5, 6)])
    server = Server(root=tmp_path)
    layer = server.layer(NAME)
    origin.gives(5)
    wait(lambda: not server._aheads[NAME].threads)
    assert layer.waits == 0
    thread = reading(layer, 20)
    assert 0 < layer.waits < 5
    wait(lambda: layer.waits > 0.2)
    passes(server)
    assert folder.ahead() == []
    origin.gives(*range(20, 24))
    thread.join()
    assert layer.waits == 0
    server._tell_ahead()  # it is made up for
    assert folder.ahead() == [range(5, 6)]


def test_another_layers_read_is_no_reason(
    folder: Folder, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleetfoot.lazyfs.node.server._HELD", 0.0)
    other = Table.of(io.BytesIO(IMAGE[: 4 * BLOCK]), io.BytesIO())
    name = hashlib.sha256(other.dump()).hexdigest()
    Folder.of(tmp_path, name).add(other.dump(), Place("registry.example", "image"))
    folder.set_trace([range(5, 6)])
    server = Server(root=tmp_path)
    server.layer(NAME)
    origin.gives(5)
    wait(lambda: not server._aheads[NAME].threads)
    thread = reading(server.layer(name), 0)
    passes(server)
    assert folder.ahead() == [range(5, 6)]
    origin.gives(*range(4))
    thread.join()


def test_a_restarted_server_knows_what_was_told(
    folder: Folder, origin: Origin, tmp_path: Path
) -> None:
    folder.set_trace([range(5, 7)])
    origin.gives(5, 6)
    for _ in range(2):
        server = Server(root=tmp_path)
        layer = server.layer(NAME)
        wait(lambda server=server: not server._aheads[NAME].threads)
        before = folder.news
        passes(server)
        assert layer.touched == [5, 6]
    assert folder.news == before
    assert origin.asked == [range(5, 7)]


def test_what_was_evicted_meanwhile_is_not_told(
    folder: Folder, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.set_trace([range(5, 6)])
    server = Server(root=tmp_path)
    layer = server.layer(NAME)
    origin.gives(5)
    wait(lambda: not server._aheads[NAME].threads)
    alone = Folder.alone

    def evicted(of: Folder) -> object:
        layer.cache.evict()
        return alone(of)

    monkeypatch.setattr(Folder, "alone", evicted)
    passes(server)
    assert folder.ahead() == []


def test_what_is_complete_needs_no_telling(folder: Folder, origin: Origin, tmp_path: Path) -> None:
    folder.set_trace([range(5, 6)])
    server = Server(root=tmp_path)
    server.layer(NAME)
    origin.gives(5)
    wait(lambda: not server._aheads[NAME].threads)
    folder.mark_complete()
    passes(server)
    assert folder.ahead() == []
    assert not server._aheads


def test_what_cannot_be_fetched_keeps_nothing_from_being_told(
    folder: Folder, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> bytes:
        raise FleetfootError("gone")

    folder.set_trace([range(5, 6), range(7, 8), range(9, 10), range(11, 12)])
    server = Server(root=tmp_path, deadline=0)
    origin.gives(5)
    give = origin.range
    monkeypatch.setattr(
        origin, "range", lambda *asked: (give if BEGINS[asked[1]] == 5 else gone)(*asked)
    )
    server.layer(NAME)
    wait(lambda: not server._aheads[NAME].threads)
    passes(server)
    assert folder.ahead() == [range(5, 6)]


def test_what_is_told_holds_for_this_boot(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert folder.ahead() == []
    folder.set_ahead([range(1, 3), range(7, 8)])
    assert folder.ahead() == [range(1, 3), range(7, 8)]
    (boot := folder.path / "boot").write_text("another")
    with monkeypatch.context() as patched:
        patched.setattr("fleetfoot.lazyfs.node.store._BOOT", boot)
        assert folder.ahead() == []
    for broken in ("", "[]", '{"runs": []}', '{"boot": 1, "runs": 1}'):
        (folder.path / "ahead.json").write_text(broken)
        assert folder.ahead() == []


def test_whatever_is_said_is_news(folder: Folder) -> None:
    seen = [folder.news]
    for say in (
        lambda: folder.set_ahead([range(1)]),
        lambda: folder.set_ahead([range(2)]),
        folder.mark_complete,
        folder.unmark,
    ):
        say()
        seen.append(folder.news)
    assert len(set(seen)) == 4
    assert seen[0] == seen[4]
    assert folder.ahead() == []


def test_layers_without_a_trace_have_nothing_to_tell(
    folder: Folder, origin: Origin, tmp_path: Path
) -> None:
    server, before = Server(root=tmp_path), threading.active_count()
    server.layer(NAME)
    assert threading.active_count() == before
    server._tell_ahead()
    assert not (folder.path / "ahead.json").exists()
    assert not origin.asked


def test_what_cannot_be_told_for_a_full_disk_is_given_up(
    folder: Folder, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.set_trace([range(5, 6)])
    server = Server(root=tmp_path)
    layer = server.layer(NAME)
    origin.gives(5)
    wait(lambda: layer.cache.has(5) and not server._aheads[NAME].threads)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Folder, "set_ahead", full)
    passes(server)
    assert not server._aheads


def test_a_step_that_fails_keeps_no_other_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, done = Server(root=tmp_path, rate=0), list[str]()

    def failing(name: str) -> None:
        done.append(name)
        if len(done) > 7:
            raise SystemExit  # of the thread that is tested
        raise OSError(errno.ENOSPC, "full")

    steps = ("_forget", "_make_room", "_tell_ahead", "report")
    for name in steps:
        monkeypatch.setattr(server, name, lambda name=name: failing(name))
    monkeypatch.setattr("fleetfoot.lazyfs.node.server._PAUSE", 0.001)
    monkeypatch.setattr("fleetfoot.lazyfs.node.registries.warm", lambda _: None)
    with pytest.raises(SystemExit):
        server.work()
    assert tuple(done) == steps * 2


@pytest.mark.usefixtures("origin")
def test_a_trace_recorded_anew_has_what_was_told_in_its_order(
    folder: Folder, tmp_path: Path
) -> None:
    folder.set_trace([range(30, 32), range(10, 12)])
    folder.set_ahead([range(3, 4), range(10, 12), range(30, 32)])
    assert Server(root=tmp_path).layer(NAME).touched == [30, 31, 10, 11, 3]


def packed(*runs: range) -> bytes:
    """Return packed blocks one after the other."""
    data = PACKED.getvalue()
    return b"".join(data[begin : begin + count] for begin, count in map(TABLE.place_of, runs))


def test_a_pack_brings_a_trace_with_few_requests(
    folder: Folder, origin: Origin, tmp_path: Path
) -> None:
    runs = [range(40, 41), range(3, 5), range(10, 30), range(8, 9), range(500, 501)]
    origin.packs["pack"] = packed(*runs[:-1])
    folder.set_trace(runs, "pack")
    server = Server(root=tmp_path)
    layer = server.layer(NAME)
    wait(lambda: not server._aheads[NAME].threads)
    named = [block for run in runs[:-1] for block in run]
    assert all(layer.cache.has(block) for block in named)
    assert layer.cache.count == len(named) == 24
    asked = sorted(origin.asked_packs)
    assert [offset for offset, _ in asked[1:]] == [offset + count for offset, count in asked[:-1]]
    assert len(asked) == 2, "of at most some 1 MiB each"
    assert not origin.asked
    assert server.counts["blocks_ahead"] == 24
    assert layer.read(40 * BLOCK, 4096) == IMAGE[40 * BLOCK :]


@pytest.mark.usefixtures("folder")
def test_what_others_fetch_is_theirs(origin: Origin, tmp_path: Path) -> None:
    origin.packs["pack"] = packed(range(4, 6), range(9, 10))
    server = Server(root=tmp_path)
    layer = server.layer(NAME)
    thread = reading(layer, 4)
    wait(lambda: origin.asked)
    assert layer.fetch_packed([range(4, 6)], "pack", 0)
    assert not origin.asked_packs, "both are on their way"
    assert layer.fetch_packed([range(4, 6), range(9, 10)], "pack", 0)
    assert layer.cache.has(9)
    assert not layer.cache.has(4)
    origin.gives(*range(4, 8))
    thread.join()
    assert layer.cache.has(4)


@pytest.mark.parametrize("pack", ["damaged", "short", "refused"])
def test_a_pack_that_is_wrong_costs_time_alone(
    folder: Folder, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: str
) -> None:
    content = bytearray(packed(range(5, 7)))
    content[5] ^= 1
    origin.packs |= {"damaged": bytes(content), "short": bytes(content[:100])}
    give = origin.range

    def given(digest: str, offset: int, count: int) -> bytes:
        if digest == "refused":
            raise FleetfootError(digest)
        return give(digest, offset, count)

    monkeypatch.setattr(origin, "range", given)
    origin.gives(5, 6)
    folder.set_trace([range(5, 7)], pack)
    server = Server(root=tmp_path)
    layer = server.layer(NAME)
    wait(lambda: not server._aheads[NAME].threads)
    assert origin.asked == [range(5, 7)]
    assert layer.read(5 * BLOCK, 2 * BLOCK) == IMAGE[5 * BLOCK : 7 * BLOCK]
    assert server.counts["corrupted_fetched"] == (pack == "damaged")


@pytest.mark.usefixtures("folder")
def test_blocks_need_not_follow_each_other_in_a_pack_as_in_the_layer(
    origin: Origin, tmp_path: Path
) -> None:
    runs = [range(5, 6), range(9, 10), range(6, 7)]
    origin.packs["pack"] = packed(*runs)
    layer = Server(root=tmp_path).layer(NAME)
    origin.gives(9)
    layer.fetch(range(9, 10))
    assert layer.fetch_packed(runs, "pack", 0)
    assert layer.read(5 * BLOCK, 2 * BLOCK) == IMAGE[5 * BLOCK : 7 * BLOCK]


def test_what_a_full_disk_does_not_keep_is_not_fetched_twice(
    folder: Folder, origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleetfoot.lazyfs.node.store.Cache.write", lambda *_: False)
    origin.packs["pack"] = packed(range(5, 7))
    folder.set_trace([range(5, 7)], "pack")
    server = Server(root=tmp_path)
    server.layer(NAME)
    wait(lambda: not server._aheads[NAME].threads)
    assert len(origin.asked_packs) == 1
    assert not origin.asked


def test_a_trace_and_its_pack_are_kept_as_one(folder: Folder) -> None:
    assert folder.trace() == ([], "")
    folder.set_trace([range(1)], "pack")
    assert folder.trace() == ([range(1)], "pack")
    folder.set_trace([range(2)])
    assert folder.trace() == ([range(2)], "")
    for broken in (b"", b"[[0, 1]]", b'{"runs": 1}', b"\xff"):
        (folder.path / "trace.json").write_bytes(broken)
        assert folder.trace() == ([], "")
