"""Loop devices, the kernel's own where it has them."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from fleetfoot.lazyfs.node import loops

#: What a C program makes of struct loop_config with linux/loop.h: file 5, blocks of 4,096 bytes,
#: read-only, going by itself, with direct I/O.
CONFIG = "0500000000100000" + "00" * 52 + "15000000" + "00" * 240


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.write_bytes(os.urandom(4 * 4096))
    return made


def test_the_structure_is_what_the_headers_say() -> None:
    assert loops._CONFIG.pack(5, 4096, 1 | 4 | 16).hex() == CONFIG


@pytest.mark.skipif(
    not Path("/dev/loop-control").exists(), reason="this kernel has no loop devices"
)
def test_a_device_reads_its_file_and_goes_with_its_last_user(file: Path) -> None:
    with loops.attached(file) as device:
        major, _, minor = device.partition(":")
        assert int(major) == loops.MAJOR
        shown = Path(f"/sys/block/loop{minor}")
        assert (shown / "dev").read_text().strip() == device
        assert (shown / "ro").read_text().strip() == "1"
        assert (shown / "loop/autoclear").read_text().strip() == "1"
        assert Path(f"/dev/loop{minor}").read_bytes() == file.read_bytes()
        assert loops.reads(file)
        (file.parent / "link").symlink_to(file)
        assert loops.reads(file.parent / "link")
        assert not loops.reads(file.parent / "other")
    assert not loops.reads(file)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What was asked of a kernel that refuses whatever stands in `refusals`: numbers, and flags."""
    (folder := tmp_path / "dev").mkdir()
    for name in ("loop-control", "loop0", "loop1"):
        (folder / name).touch()
    said: list[tuple[int, int]] = []

    def ioctl(file: int, request: int, argument: bytes = b"") -> int:
        path = Path(f"/proc/self/fd/{file}").readlink().name
        if request == 0x4C82:
            return len({number for number, _ in said if REFUSED.get(number) == errno.EBUSY})
        assert request == 0x4C0A
        number, flags = int(path.removeprefix("loop")), loops._CONFIG.unpack(argument)[2]
        said.append((number, flags))
        if code := REFUSED.get(number) or REFUSED.get(-flags):
            raise OSError(code, "refused")
        return 0

    monkeypatch.setattr(loops, "_DEVICES", folder)
    monkeypatch.setattr("fcntl.ioctl", ioctl)
    REFUSED.clear()
    return said


REFUSED: dict[int, int] = {}


def test_what_others_took_meanwhile_is_left_to_them(file: Path, asked: Any) -> None:
    REFUSED[0] = errno.EBUSY
    with loops.attached(file):
        pass
    assert asked == [(0, 21), (1, 21)]


def test_where_there_is_no_direct_io_the_cache_is_read(file: Path, asked: Any) -> None:
    REFUSED[-21] = errno.EINVAL
    with loops.attached(file):
        pass
    assert asked == [(0, 21), (0, 5)]


def test_a_refusal_is_told(file: Path, asked: Any) -> None:
    REFUSED[0] = errno.EPERM
    with pytest.raises(PermissionError), loops.attached(file):
        pass
    assert asked == [(0, 21)]
