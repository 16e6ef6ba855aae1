"""What is said to device-mapper is what its headers have, and what it answers is understood."""

from __future__ import annotations

import ctypes
import errno
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fleetfoot.lazyfs.node import mapper
from fleetfoot.lazyfs.node.mapper import Segment
from tests.unit.lazyfs.kernel import Kernel

NETWORK = [Segment(0, 200, "43:0")]
BOTH = [Segment(0, 128, "43:0"), Segment(128, 72, "7:1")]
#: What a C program makes of `BOTH` with linux/dm-ioctl.h: struct dm_ioctl up to the name, and the
#: specifications of both targets.
HEAD = "0400000000000000000000009801000038010000020000000000000001000000" + "00" * 16
SPECS = (
    "00000000000000008000000000000000"
    "00000000300000006c696e656172000000000000000000003433"
    "3a3020300000"
    "80000000000000004800000000000000"
    "00000000300000006c696e65617200000000000000000000373a"
    "312031323800"
)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel(tmp_path / "block", monkeypatch)
    for name, device in (("nbd0", "43:0"), ("loop1", "7:1")):
        (made.block / name).mkdir()
        (made.block / name / "dev").write_text(f"{device}\n")
    return made


def test_a_table_is_what_the_headers_say(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[int, bytes]] = []
    monkeypatch.setattr(
        mapper, "_ioctl", lambda request, buffer: said.append((request, buffer.raw))
    )
    mapper._load("x", BOTH)
    ((request, data),) = said
    assert request == 0xC138FD09
    assert data[:48].hex() == HEAD
    assert data[48:312] == b"fleetfoot-lazy-x".ljust(264, b"\0")
    assert data[312:].hex() == SPECS


def test_a_device_has_a_name_and_a_table(kernel: Kernel) -> None:
    assert mapper.table("one") == []
    number = mapper.make("one", NETWORK)
    assert kernel.mapped["fleetfoot-lazy-one"].uuid == "fleetfoot-lazy-one"
    assert kernel.said[-3:] == ["create", "load", "resume"]
    assert mapper.found() == {"one": number}
    assert mapper.table("one") == NETWORK
    assert mapper.beneath(number) == {"nbd0"}
    mapper.change("one", BOTH, 1)
    assert mapper.table("one") == BOTH
    assert mapper.beneath(number) == {"nbd0", "loop1"}
    assert mapper.remove("one")
    assert mapper.remove("one"), "it is gone already"
    assert mapper.found() == {}


def test_devices_of_others_are_not_ours(kernel: Kernel) -> None:
    (kernel.block / "dm-7/dm").mkdir(parents=True)
    (kernel.block / "dm-7/dm/name").write_text("vg-root\n")
    assert mapper.found() == {}


def test_numbers_may_be_large(kernel: Kernel) -> None:
    kernel._numbers = iter([70_000])  # type: ignore[assignment]
    assert mapper.make("one", NETWORK) == 70_000


def test_a_long_table_is_read_to_its_end(kernel: Kernel) -> None:
    rows = [Segment(8 * n, 8, ("43:0", "7:1")[n % 2]) for n in range(5000)]
    mapper.make("one", rows)
    assert mapper.table("one") == rows
    assert kernel.said[-2:] == ["table", "table"]


def test_what_somebody_who_was_killed_began_is_gone_on_with(kernel: Kernel) -> None:
    def killed(command: str) -> None:
        if command == "resume":
            raise KeyboardInterrupt

    kernel.before = killed
    with pytest.raises(KeyboardInterrupt):
        mapper.make("one", NETWORK)
    kernel.before = lambda _: None
    assert mapper.table("one") == []
    number = mapper.make("one", NETWORK)
    assert mapper.found() == {"one": number}
    assert mapper.table("one") == NETWORK


def test_what_cannot_be_made_leaves_nothing(kernel: Kernel) -> None:
    def refused(command: str) -> None:
        if command == "load":
            raise OSError(errno.EBUSY, "mounted by itself")

    kernel.before = refused
    with pytest.raises(OSError, match="mounted by itself"):
        mapper.make("one", NETWORK)
    assert not kernel.mapped


def test_a_device_in_use_stays(kernel: Kernel) -> None:
    number = mapper.make("one", NETWORK)
    kernel.mounts[Path("/fs")] = f"/dev/dm-{number}"
    assert not mapper.remove("one")
    assert mapper.table("one") == NETWORK


def test_without_device_mapper_there_are_none(kernel: Kernel) -> None:
    kernel.has_mapper = False
    assert mapper.table("one") == []
    assert mapper.remove("one")
    with pytest.raises(FileNotFoundError):
        mapper.make("one", NETWORK)


def test_a_change_that_fails_leaves_the_device_as_it_was(kernel: Kernel) -> None:
    mapper.make("one", NETWORK)
    mapped, refusals = kernel.mapped["fleetfoot-lazy-one"], iter([True])

    def refused(command: str) -> None:
        if command == "resume" and next(refusals, False):
            mapped.suspended = True  # as the kernel leaves it, when it has no memory for the swap
            raise OSError(errno.ENOMEM, "no memory")

    kernel.before = refused
    with pytest.raises(OSError, match="no memory"):
        mapper.change("one", BOTH, 1)
    assert kernel.said[-2:] == ["clear", "resume"]
    assert not mapped.suspended
    assert mapped.loaded is None
    assert mapper.table("one") == NETWORK


@pytest.fixture
def interruptible() -> Any:
    before = signal.signal(mapper.INTERRUPT, lambda *_: None)
    yield
    signal.signal(mapper.INTERRUPT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_wait_that_is_too_long_is_interrupted(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapper, "_AGAIN", 0.02)
    libc = ctypes.CDLL(None, use_errno=True)
    mapper.make("one", NETWORK)
    told: list[OSError] = []

    def waits(command: str) -> None:
        if command == "resume" and kernel.mapped["fleetfoot-lazy-one"].loaded:
            time.sleep(0.1)  # the first signal finds nobody in the kernel
            assert libc.pause() == -1  # until any signal comes
            raise OSError(ctypes.get_errno(), "interrupted")

    def change() -> None:
        try:
            mapper.change("one", BOTH, 0.05)
        except OSError as error:
            told.append(error)

    kernel.before = waits
    changing = threading.Thread(target=change)
    changing.start()
    changing.join(10)
    assert [error.errno for error in told] == [errno.EINTR]
    assert mapper.table("one") == NETWORK


@pytest.mark.usefixtures("kernel", "interruptible")
def test_who_need_not_wait_leaves_no_watch_behind() -> None:
    before = threading.active_count()
    mapper.make("one", NETWORK)
    mapper.change("one", BOTH, 60)
    assert threading.active_count() == before
