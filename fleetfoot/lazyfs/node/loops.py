"""Loop devices of the kernel: files as block devices, read past the page cache.

Each goes by itself with the last that has it open, be it the process that made it or a device above
it: nothing is left of one whose maker was killed. Structures and numbers are those of linux/loop.h.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MAJOR", "attached", "reads"]

MAJOR = 7
"""Number of their kind: what stands before the colon of a device."""

_BLOCK = Path("/sys/block")
_DEVICES = Path("/dev")
_CONFIGURE, _GET_FREE = 0x4C0A, 0x4C82
_READ_ONLY, _AUTO_CLEAR, _DIRECT = 1, 4, 16
# struct loop_config: fd, block_size; of its loop_info64 five numbers of 64 bits (of which offset
# and size limit stay 0), number, two of encryption, flags; the rest is empty.
_CONFIG = struct.Struct("=II40x12xI160x16x64x")
_SECTOR = 4096  # as the network block devices beside it: tables of both have one size of sectors
_ATTEMPTS = 64  # others may take the device that was free a moment ago


@contextlib.contextmanager
def attached(file: Path) -> Iterator[str]:
    """Make a device of a file, to be read; it stays while it is open.

    Args:
        file: Has a multiple of 4,096 bytes.

    Yields:
        The device, `major:minor`.

    Raises:
        OSError: The kernel has none, or refuses.
    """
    source = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        device = _configured(source)
    finally:
        os.close(source)
    try:
        made = os.fstat(device).st_rdev
        yield f"{os.major(made)}:{os.minor(made)}"
    finally:
        os.close(device)


def reads(file: Path) -> bool:
    """Whether a loop device reads a file, whoever made it."""
    wanted = os.path.realpath(file)
    for path in _BLOCK.glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it has just gone
            if path.read_text().removesuffix("\n") == wanted:
                return True
    return False


def _configured(source: int) -> int:
    # With direct I/O nothing is cached twice: what is above has a cache of its own. Kernels read
    # through the cache where the file system cannot, most without a word.
    flags = _READ_ONLY | _AUTO_CLEAR
    try:
        return _opened(source, flags | _DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return _opened(source, flags)


def _opened(source: int, flags: int) -> int:
    attempts = _ATTEMPTS
    while True:
        control = os.open(_DEVICES / "loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            number = fcntl.ioctl(control, _GET_FREE)
        finally:
            os.close(control)
        device = os.open(_DEVICES / f"loop{number}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(device, _CONFIGURE, _CONFIG.pack(source, _SECTOR, flags))
        except OSError as error:
            os.close(device)
            attempts -= 1
            if error.errno != errno.EBUSY or not attempts:
                raise
        else:
            return device
