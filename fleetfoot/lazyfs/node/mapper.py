"""Device-mapper devices of the kernel: what a mounted one reads from is changed beneath it.

Each is a row of `linear` segments on other devices. A change is loaded beside what is in use, and
one call (DM_DEV_SUSPEND without its flag, do_resume in the kernel) waits for the reads in flight,
puts it in place, and lets the reads go on that came meanwhile: whoever is killed in that call
leaves the old table or the new one, and no device that waits for somebody to resume it. Structures
and numbers are those of linux/dm-ioctl.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "INTERRUPT",
    "SECTOR",
    "Segment",
    "beneath",
    "change",
    "found",
    "make",
    "remove",
    "set_read_ahead",
    "settle",
    "table",
]

SECTOR = 512
"""Bytes of what tables count in, whatever the devices' own blocks."""
INTERRUPT = signal.SIGUSR1
"""Signal that ends a wait which is too long. A process that changes devices has a handler for it,
which need not do anything; without one, changes wait for as long as it takes."""

_OWN = "fleetfoot-lazy-"  # names and UUIDs of ours; what follows is whose a device is
_CONTROL = "/dev/mapper/control"
_BLOCK = Path("/sys/block")
_VERSION = (4, 0, 0)  # the kernel takes any that is not newer than its own
_CREATE, _REMOVE, _SUSPEND, _STATUS, _LOAD, _CLEAR, _TABLE = 3, 4, 6, 7, 9, 10, 12
_READ_ONLY, _OF_TABLE, _FULL, _NO_FREEZE = 1 << 0, 1 << 4, 1 << 8, 1 << 10
# struct dm_ioctl: version, data_size, data_start, target_count, open_count, flags, event_nr,
# padding, dev, name, uuid.
_HEAD = struct.Struct("=3IIIIiIIIQ128s129s7x")
_SPEC = struct.Struct("=QQiI16s")  # struct dm_target_spec: start, length, status, next, type
_TYPE, _KIND = 0xFD, b"linear"
_ROOM = 1 << 16  # bytes for an answer, at first
_NONE = {errno.ENXIO, errno.ENOENT, errno.ENODEV}  # no such device, or no device-mapper
_AGAIN = 0.5  # seconds until a wait that went on is interrupted once more
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Segment:
    """A part of a device that is read from the same place of another one.

    Attributes:
        first: Its first sector (`SECTOR`).
        count: How many it has.
        device: Where it is read, `major:minor`.
    """

    first: int
    count: int
    device: str


@dataclass(frozen=True)
class _Answer:
    number: int
    flags: int
    targets: int
    data: bytes


def found() -> dict[str, int]:
    """Return our devices that have a table: whose each is, and its number (`/dev/dm-<number>`)."""
    devices = {}
    for device in _BLOCK.iterdir():  # asked for often: cheaper than a glob
        if device.name.startswith("dm-"):
            with contextlib.suppress(OSError):  # it has just gone
                name = (device / "dm/name").read_text().strip()
                if name.startswith(_OWN):
                    devices[name.removeprefix(_OWN)] = int(device.name.removeprefix("dm-"))
    return devices


def beneath(number: int) -> set[str]:
    """Return the kernel's names of what a device is read from, as `nbd0`, `loop1`."""
    try:
        return {path.name for path in (_BLOCK / f"dm-{number}" / "slaves").iterdir()}
    except OSError:  # it has just gone
        return set()


def set_read_ahead(number: int, kib: int) -> None:
    """Have the kernel read that many KiB ahead; a change of the table may have set it back."""
    with contextlib.suppress(OSError):
        (_BLOCK / f"dm-{number}" / "queue" / "read_ahead_kb").write_text(str(kib))


def make(owner: str, segments: Sequence[Segment]) -> int:
    """Make a device, or go on with one that somebody who was killed had begun.

    Args:
        owner: Whose it is.
        segments: What it is read from: all of it, in order.

    Returns:
        Its number.

    Raises:
        OSError: The kernel has no device-mapper, or refuses; then there is no device, either.
    """
    try:
        number = _ask(_CREATE, owner, uuid=_OWN + owner).number
    except OSError as error:
        if error.errno != errno.EBUSY:  # there is one of that name
            raise
        number = _ask(_STATUS, owner).number
    try:
        _load(owner, segments)
        _ask(_SUSPEND, owner, flags=_NO_FREEZE)
    except OSError:
        with contextlib.suppress(OSError):
            remove(owner)
        raise
    return number


def change(owner: str, segments: Sequence[Segment], patience: float) -> None:
    """Have a device read from elsewhere, while it is read.

    It waits for the reads that are in flight, and those that come meanwhile wait, too.

    Args:
        owner: Whose it is.
        segments: What it is read from from now on; as long as before.
        patience: Seconds until it is given up (`INTERRUPT`), and all is as before.

    Raises:
        OSError: The kernel refuses (or InterruptedError: it was given up); all is as before.
    """
    try:
        _load(owner, segments)
        # Nothing is frozen: file systems on it are not written, so none has anything to bring home.
        with _bounded(patience):
            _ask(_SUSPEND, owner, flags=_NO_FREEZE)
    except OSError:
        with contextlib.suppress(OSError):
            settle(owner)
        raise


def settle(owner: str) -> None:
    """Take back a change that was begun, and have the device go on with what it has.

    A switch that fails within (for want of memory) leaves the device suspended.

    Raises:
        OSError: There is no such device, or it never had a table.
    """
    _ask(_CLEAR, owner)
    _ask(_SUSPEND, owner, flags=_NO_FREEZE)


def table(owner: str) -> list[Segment]:
    """Return what a device is read from; nothing where there is none, or none in use yet.

    Raises:
        OSError: The kernel refuses.
    """
    room = _ROOM
    while True:
        try:
            answer = _ask(_TABLE, owner, flags=_OF_TABLE, room=room)
        except OSError as error:
            if error.errno in _NONE:
                return []
            raise
        if not answer.flags & _FULL:
            return _parsed(answer)
        room *= 4


def remove(owner: str) -> bool:
    """Take a device away; return False while it is in use.

    Raises:
        OSError: The kernel refuses for another reason.
    """
    try:
        _ask(_REMOVE, owner)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        if error.errno not in _NONE:
            raise
    return True


def _load(owner: str, segments: Sequence[Segment]) -> None:
    specs = []
    for segment in segments:
        where = f"{segment.device} {segment.first}".encode() + b"\0"
        where += b"\0" * (-len(where) % 8)
        size = _SPEC.size + len(where)  # from here to the next one
        specs.append(_SPEC.pack(segment.first, segment.count, 0, size, _KIND) + where)
    _ask(_LOAD, owner, flags=_READ_ONLY, targets=len(segments), data=b"".join(specs))


def _parsed(answer: _Answer) -> list[Segment]:
    segments, place = [], 0
    for _ in range(answer.targets):
        first, count, _, following, _ = _SPEC.unpack_from(answer.data, place)
        where = answer.data[place + _SPEC.size :].partition(b"\0")[0].decode()
        segments.append(Segment(first, count, where.split()[0]))
        place = following  # from the beginning of all of them
    return segments


def _ask(
    command: int,
    owner: str,
    *,
    uuid: str = "",
    flags: int = 0,
    targets: int = 0,
    data: bytes = b"",
    room: int = 0,
) -> _Answer:
    size = _HEAD.size + max(len(data), room)
    name = (_OWN + owner).encode()
    head = _HEAD.pack(*_VERSION, size, _HEAD.size, targets, 0, flags, 0, 0, 0, name, uuid.encode())
    buffer = ctypes.create_string_buffer(head + data, size)
    # _IOWR: both ways, the size of the head, the type, the command.
    _ioctl(3 << 30 | _HEAD.size << 16 | _TYPE << 8 | command, buffer)
    _, _, _, end, start, targets, _, flags, _, _, device, _, _ = _HEAD.unpack_from(buffer)
    minor = device & 0xFF | device >> 12 & 0xFFF00  # huge_encode_dev
    return _Answer(minor, flags, targets, buffer.raw[start:end])


def _ioctl(request: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
    # Not fcntl.ioctl: with more than 1,024 bytes it keeps the interpreter's lock (before 3.14), and
    # who could mend the devices that a call waits for would wait for the call.
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        if _libc.ioctl(control, ctypes.c_ulong(request), buffer) < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"device-mapper: {os.strerror(code)}")
    finally:
        os.close(control)


@contextlib.contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    """Interrupt what this thread waits for in the kernel, from then on until it is done."""
    if not callable(signal.getsignal(INTERRUPT)):
        yield
        return
    waiting, over = threading.get_ident(), threading.Event()

    def interrupt() -> None:
        pause = seconds
        while not over.wait(pause):  # more than once: it may not have been in the kernel yet
            signal.pthread_kill(waiting, INTERRUPT)
            pause = _AGAIN

    watch = threading.Thread(target=interrupt, daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()
