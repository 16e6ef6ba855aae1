"""mount(2) and umount2(2), without a program for each."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

__all__ = ["mount", "mounted", "unmount"]

READ_ONLY = 1
_DETACH = 2
_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(r"\\([0-7]{3})")  # blanks and the like, proc_pid_mountinfo(5)
_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: Path, kind: str, flags: int = READ_ONLY, options: str = "") -> None:
    """Mount a file system.

    Raises:
        OSError: The kernel refuses.
    """
    done = _libc.mount(
        source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode()
    )
    if done:
        code = ctypes.get_errno()
        raise OSError(code, f"mounting {source} at {target}: {os.strerror(code)}")


def unmount(target: Path, *, detach: bool = False) -> None:
    """Unmount a file system.

    Args:
        target: Where it is mounted.
        detach: Let it go when nobody uses it any more, instead of refusing.

    Raises:
        OSError: It is in use, or nothing is mounted there.
    """
    if _libc.umount2(os.fsencode(target), _DETACH if detach else 0):
        code = ctypes.get_errno()
        raise OSError(code, f"unmounting {target}: {os.strerror(code)}")


def mounted() -> dict[Path, str]:
    """Return what is mounted, by where: the source."""
    found = {}
    for line in _MOUNTS.read_text().splitlines():
        where, _, what = line.partition(" - ")
        target = _ESCAPED.sub(lambda code: chr(int(code[1], 8)), where.split(" ", 5)[4])
        found[Path(target)] = what.split(" ", 2)[1]
    return found
