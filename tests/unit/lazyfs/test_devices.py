"""Devices of layers: mounted from the network, read from the file as it fills, and never lost."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fleetfoot.lazyfs.node import devices as module
from fleetfoot.lazyfs.node import mapper
from fleetfoot.lazyfs.node.devices import Devices, _divided
from fleetfoot.lazyfs.node.server import Server
from fleetfoot.lazyfs.node.store import Folder, Place
from fleetfoot.lazyfs.table import BLOCK, Table
from tests.unit.lazyfs.kernel import Kernel

PER_BLOCK = BLOCK // mapper.SECTOR
CONTENT = os.urandom(10 * BLOCK + 4096)
TABLE = Table.of(io.BytesIO(CONTENT))
LENGTH = len(CONTENT) // mapper.SECTOR
OTHER = Table.of(io.BytesIO(CONTENT[:BLOCK]))


def layer(root: Path, table: Table = TABLE) -> Folder:
    """Return the folder of a layer, with a file of its size."""
    folder = Folder.of(root, hashlib.sha256(table.dump()).hexdigest())
    folder.add(table.dump(), Place("registry.example", "image"))
    folder.data.touch()
    os.truncate(folder.data, table.length)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return layer(tmp_path)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(Devices, "watch", lambda _: None)  # tests look themselves
    return Kernel(tmp_path / "block", monkeypatch)


def wait(check: Callable[[], bool]) -> None:
    """Wait until something is so."""
    until = time.monotonic() + 10
    while not check():
        assert time.monotonic() < until
        time.sleep(0.005)


class Node:
    """The snapshotter's devices, and one mount of a layer."""

    def __init__(self, root: Path) -> None:
        self.said: list[str] = []
        self.root, self.target = root, root / "fs"
        self.devices = self.started()

    def started(self) -> Devices:
        """Start the snapshotter, as after it was killed."""
        self.devices = Devices(self.root, self.root / "sock", dead_timeout=1, log=self.said.append)
        return self.devices

    def looks(self) -> None:
        """Have it look once, and wait for what it began."""
        self.devices._look()
        wait(lambda: not self.devices._changing)

    @property
    def way(self) -> str:
        return self.devices.way(self.target)


@pytest.fixture
def node(tmp_path: Path, kernel: Kernel) -> Node:
    assert not kernel.devices()
    return Node(tmp_path)


def test_a_layer_is_divided_by_what_is_here() -> None:
    def parts(*runs: range) -> list[tuple[int, int, str]]:
        found = _divided(TABLE, runs, "nbd", "loop")
        return [(each.first, each.count, each.device) for each in found]

    assert parts() == [(0, LENGTH, "nbd")]
    assert parts(range(11)) == [(0, LENGTH, "loop")]
    assert parts(range(2, 3), range(5, 7)) == [
        (0, 2 * PER_BLOCK, "nbd"),
        (2 * PER_BLOCK, PER_BLOCK, "loop"),
        (3 * PER_BLOCK, 2 * PER_BLOCK, "nbd"),
        (5 * PER_BLOCK, 2 * PER_BLOCK, "loop"),
        (7 * PER_BLOCK, LENGTH - 7 * PER_BLOCK, "nbd"),
    ]
    # The last block is shorter; what stands behind it is nothing.
    assert parts(range(1), range(10, 12), range(20, 30)) == [
        (0, PER_BLOCK, "loop"),
        (PER_BLOCK, 9 * PER_BLOCK, "nbd"),
        (10 * PER_BLOCK, 8, "loop"),
    ]


def test_what_is_not_here_is_mounted_from_the_network(
    node: Node, kernel: Kernel, folder: Folder
) -> None:
    node.devices.mount(folder, node.target)
    (number,) = mapper.found().values()
    assert kernel.mounts == {node.target: f"/dev/dm-{number}"}
    assert kernel.table(folder.name) == [(0, LENGTH, "43:0 0")]
    assert kernel.read(f"dm-{number}/queue/read_ahead_kb") == "128"
    assert node.way == "nbd"
    # Once for all that mount it.
    node.devices.mount(folder, node.root / "another")
    node.devices.mount(folder, node.target)
    assert kernel.devices() == {"nbd0", f"dm-{number}"}


def test_what_is_complete_is_mounted_from_its_file(
    node: Node, kernel: Kernel, folder: Folder
) -> None:
    folder.mark_complete()
    node.devices.mount(folder, node.target)
    assert kernel.mounts == {node.target: str(folder.data)}
    assert node.way == "file"
    assert kernel.devices() == set()


def test_a_mount_is_read_from_its_file_once_that_is_complete(
    node: Node, kernel: Kernel, folder: Folder
) -> None:
    node.devices.mount(folder, node.target)
    mounted = dict(kernel.mounts)
    node.looks()
    assert node.way == "nbd"
    folder.mark_complete()
    node.looks()
    assert node.way == "file"
    (number,) = mapper.found().values()
    assert kernel.devices() == {f"dm-{number}", "loop2"}, "the network's is gone"
    assert kernel.table(folder.name) == [(0, LENGTH, "7:2 0")]
    assert kernel.read(f"dm-{number}/queue/read_ahead_kb") == "256"
    assert kernel.mounts == mounted
    said = len(kernel.said)
    node.looks()
    assert len(kernel.said) == said, "there is nothing to be looked at any more"


def test_what_came_ahead_is_read_from_the_file_beside_the_rest(
    node: Node, kernel: Kernel, folder: Folder
) -> None:
    node.devices.mount(folder, node.target)
    folder.set_ahead([range(2, 3)])
    node.looks()
    assert node.way == "both"
    assert kernel.table(folder.name) == [
        (0, 2 * PER_BLOCK, "43:0 0"),
        (2 * PER_BLOCK, PER_BLOCK, f"7:2 {2 * PER_BLOCK}"),
        (3 * PER_BLOCK, LENGTH - 3 * PER_BLOCK, f"43:0 {3 * PER_BLOCK}"),
    ]
    (number,) = mapper.found().values()
    assert kernel.read(f"dm-{number}/queue/read_ahead_kb") == "128"
    changes = kernel.said.count("load")
    node.looks()
    assert kernel.said.count("load") == changes, "nothing new was said"
    folder.set_ahead([range(2, 4)])
    node.looks()
    assert kernel.table(folder.name)[1] == (2 * PER_BLOCK, 2 * PER_BLOCK, f"7:2 {2 * PER_BLOCK}")
    folder.mark_complete()
    node.looks()
    assert kernel.table(folder.name) == [(0, LENGTH, "7:2 0")]
    assert kernel.devices() == {f"dm-{number}", "loop2"}


def test_what_was_evicted_before_it_was_looked_at_is_not_read(
    node: Node, kernel: Kernel, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.devices.mount(folder, node.target)
    folder.mark_complete()
    attached = module.loops.attached

    def evicted(file: Path) -> object:
        folder.unmark()  # the server was faster
        return attached(file)

    monkeypatch.setattr(module.loops, "attached", evicted)
    node.looks()
    assert node.way == "nbd"
    assert kernel.devices() == {"nbd0", *(f"dm-{n}" for n in mapper.found().values())}


def test_without_device_mapper_layers_stay_on_the_network(
    node: Node, kernel: Kernel, folder: Folder
) -> None:
    kernel.has_mapper = False
    node.devices.mount(folder, node.target)
    node.devices.mount(layer(node.root, OTHER), node.root / "another")
    assert set(kernel.mounts.values()) == {"/dev/nbd0", "/dev/nbd1"}
    assert node.way == "nbd"
    assert len(node.said) == 1
    folder.mark_complete()
    node.looks()
    assert node.way == "nbd"
    assert not node.devices.release(folder.name)
    kernel.mounts.clear()
    assert node.devices.release(folder.name)
    assert kernel.devices() == {"nbd1"}


def test_a_layer_that_was_mounted_without_it_is_not_given_one(
    node: Node, kernel: Kernel, folder: Folder
) -> None:
    kernel.has_mapper = False
    node.devices.mount(folder, node.target)
    kernel.has_mapper = True

    def refused(command: str) -> None:
        if command == "load":
            raise OSError(errno.EBUSY, "it is mounted")

    kernel.before = refused
    node.devices.mount(folder, node.root / "another")
    assert set(kernel.mounts.values()) == {"/dev/nbd0"}
    assert not kernel.mapped


@pytest.mark.parametrize("said", ["nothing", "ahead", "complete"])
def test_what_nobody_uses_is_taken_away(
    node: Node, kernel: Kernel, folder: Folder, said: str
) -> None:
    node.devices.mount(folder, node.target)
    if said == "ahead":
        folder.set_ahead([range(1)])
    if said == "complete":
        folder.mark_complete()
    node.looks()
    assert not node.devices.release(folder.name)
    kernel.mounts.clear()
    assert node.devices.release(folder.name)
    assert kernel.devices() == set()
    assert node.devices.release(folder.name)
    node.looks()
    node.devices.mount(folder, node.target)  # and comes again
    assert node.way == ("file" if said == "complete" else "nbd")


def test_what_is_just_being_changed_is_not_taken_away(
    node: Node, kernel: Kernel, folder: Folder
) -> None:
    node.devices.mount(folder, node.target)
    kernel.mounts.clear()
    with node.devices._alone(folder.name):
        assert not node.devices.release(folder.name)
    assert node.devices.release(folder.name)


def test_a_restarted_snapshotter_goes_on(node: Node, kernel: Kernel, folder: Folder) -> None:
    node.devices.mount(folder, node.target)
    folder.set_ahead([range(1)])
    node.looks()
    node.started()._resume()
    node.looks()
    assert node.way == "both"
    assert kernel.said.count("load") == 2, "what is read from where is known from the kernel"
    folder.mark_complete()
    node.looks()
    assert node.way == "file"
    node.started()._resume()
    node.devices.mount(folder, node.root / "another")
    kernel.mounts.clear()
    assert node.devices.release(folder.name)
    assert kernel.devices() == set()


@pytest.mark.parametrize("last", ["load", "resume"])
@pytest.mark.parametrize("done", [False, True])
def test_a_change_that_was_cut_short_is_made_after_the_next_start(
    node: Node, kernel: Kernel, folder: Folder, last: str, done: bool
) -> None:
    node.devices.mount(folder, node.target)
    folder.mark_complete()
    ioctl = mapper._ioctl

    def killed(request: int, buffer: object) -> None:
        if done:
            ioctl(request, buffer)  # type: ignore[arg-type]
        if request == {"load": 0xC138FD09, "resume": 0xC138FD06}[last]:
            raise KeyboardInterrupt
        if not done:
            ioctl(request, buffer)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mapper, "_ioctl", killed)
        with pytest.raises(KeyboardInterrupt):
            node.devices._brought_up_to_date(folder)
    node.started()._resume()
    node.looks()
    assert all(each.loaded is None for each in kernel.mapped.values())
    assert node.way == "file"
    number, *_ = mapper.found().values()
    assert len(kernel.devices()) == 2, "no loop device of the first attempt is left"
    assert f"dm-{number}" in kernel.devices()


def test_a_device_that_was_left_suspended_goes_on(
    node: Node, kernel: Kernel, folder: Folder
) -> None:
    node.devices.mount(folder, node.target)
    (mapped,) = kernel.mapped.values()
    mapped.suspended = True
    node.started()._resume()
    assert mapped.suspended, "who is busy with one keeps no other waiting"
    node.looks()
    assert not mapped.suspended
    mapped.suspended = True
    node.started().mount(folder, node.root / "another")
    assert not mapped.suspended, "a mount reads from it"


def test_devices_of_a_layer_that_is_gone_go_with_the_next_start(
    node: Node, kernel: Kernel, folder: Folder
) -> None:
    node.devices.mount(folder, node.target)
    kernel.mounts.clear()
    folder.remove()
    node.started()._resume()
    assert kernel.devices() == set()


def test_others_go_on_while_one_waits(node: Node, kernel: Kernel, folder: Folder) -> None:
    other, entered, go = layer(node.root, OTHER), threading.Event(), threading.Event()
    node.devices.mount(folder, node.target)
    node.devices.mount(other, node.root / "another")
    mine = kernel.mapped[f"fleetfoot-lazy-{folder.name}"]

    def waits(command: str) -> None:
        if command == "resume" and mine.loaded:  # for a read that waits for its registry
            entered.set()
            assert go.wait(10)

    for each in (folder, other):
        each.mark_complete()
    node.devices._changing.add(other.name)  # the first one alone, to begin with
    kernel.before = waits
    node.devices._look()
    assert entered.wait(10)
    node.devices._changing.discard(other.name)
    kernel.before = lambda _: None
    node.devices._look()
    wait(lambda: node.devices.way(node.root / "another") == "file")
    assert folder.name in node.devices._changing
    node.devices.mount(folder, node.target)  # what is mounted is not kept waiting, either
    assert not node.devices.release(folder.name)
    go.set()
    wait(lambda: not node.devices._changing)
    assert node.way == "file"


def test_a_change_that_failed_is_tried_again_later_and_later(
    node: Node, kernel: Kernel, folder: Folder
) -> None:
    node.devices.mount(folder, node.target)
    folder.mark_complete()
    (mapped,) = kernel.mapped.values()

    def refused(command: str) -> None:
        if command == "resume" and mapped.loaded:
            raise InterruptedError(errno.EINTR, "a read waits")

    kernel.before = refused
    pauses = []
    for _ in range(6):
        node.looks()
        loads = kernel.said.count("load")
        node.looks()
        assert kernel.said.count("load") == loads, "not at once"
        _, pause = node.devices._refused[folder.name]
        pauses.append(pause)
        node.devices._refused[folder.name] = (0, pause)
    assert pauses == [30, 60, 120, 240, 480, 480]
    assert node.way == "nbd"
    kernel.before = lambda _: None
    node.looks()
    assert node.way == "file"
    assert not node.devices._refused


def test_a_network_device_that_somebody_looks_at_goes_later(
    node: Node, kernel: Kernel, folder: Folder
) -> None:
    node.devices.mount(folder, node.target)
    folder.mark_complete()
    kernel.mounts[Path("/blkid")] = "/dev/nbd0"
    node.looks()
    assert node.way == "file"
    assert "nbd0" in kernel.devices()
    del kernel.mounts[Path("/blkid")]
    node.devices._refused.clear()
    node.looks()
    assert "nbd0" not in kernel.devices()


@pytest.mark.parametrize("said", ["ahead", "complete"])
def test_what_the_kernel_reads_from_a_file_stays_on_a_full_disk(
    node: Node, kernel: Kernel, folder: Folder, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(root=node.root, evict=0)
    monkeypatch.setattr("fleetfoot.lazyfs.node.server._IDLE", -1)
    cache = server.layer(folder.name).cache
    cache.write(0, CONTENT[:BLOCK])
    node.devices.mount(folder, node.target)
    if said == "ahead":
        folder.set_ahead([range(1)])
    else:
        folder.mark_complete()
    node.looks()
    server._make_room()
    assert cache.count, "it is read past the server"
    assert node.way == ("both" if said == "ahead" else "file")
    kernel.mounts.clear()
    assert node.devices.release(folder.name)
    server._make_room()
    assert not cache.count
    assert not folder.ahead()
    assert not folder.is_complete
