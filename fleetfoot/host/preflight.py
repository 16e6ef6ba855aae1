"""Can this host run the local stack? All reasons together, before anything is installed."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Check", "checks", "report"]

MIN_PYTHON = (3, 11)
MIN_MEMORY_GIB = 8
#: All that one environment and the builds for it take, and what must be free for it to go on.
MIN_DISK_GIB = 20
MIN_FREE_GIB = 3
_BLOCK = 512  # of st_blocks (stat(2))
SUPPORTED = {"debian": {"12", "13"}}


@dataclass(frozen=True)
class Check:
    """One thing a host must have.

    Attributes:
        what: What was looked at, and what was seen.
        ok: Whether it serves.
        fix: What to do when it does not.
    """

    what: str
    ok: bool
    fix: str = ""


def checks(project: Path, cache: Path) -> list[Check]:
    """Look at the host; changes nothing.

    Args:
        project: The checkout, where machines' disks are kept.
        cache: The folder for built artifacts.
    """
    return [
        _root(),
        _distribution(),
        _architecture(),
        _python(),
        _tun(),
        _namespaces(),
        _memory(),
        *_disk(project, cache),
        _apt(),
    ]


def report(found: list[Check]) -> str:
    """Return the checks as text, one a line, with what to do about those that fail."""
    lines = []
    for check in found:
        lines.append(f"  {'ok ' if check.ok else 'NO '} {check.what}")
        if not check.ok:
            lines.append(f"       fix: {check.fix}")
    return "\n".join(lines)


def _root() -> Check:
    return Check(
        f"runs as root (user id {os.geteuid()})",
        os.geteuid() == 0,
        "run it as root (sudo make up): namespaces, taps and mounts need it",
    )


def os_release() -> dict[str, str]:
    """Return the fields of /etc/os-release; empty when there is none."""
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def _distribution() -> Check:
    release = os_release()
    name, version = release.get("ID", "unknown"), release.get("VERSION_ID", "?")
    known = ", ".join(f"{n} {v}" for n, vs in SUPPORTED.items() for v in sorted(vs))
    return Check(
        f"distribution is {name} {version} (supported: {known})",
        version in SUPPORTED.get(name, set()),
        f"use a host with one of: {known}",
    )


def _architecture() -> Check:
    machine = platform.machine()
    return Check(f"architecture is {machine}", machine == "x86_64", "use an x86_64 host")


def _python() -> Check:
    have = sys.version_info[:2]
    need = ".".join(map(str, MIN_PYTHON))
    return Check(
        f"Python is {have[0]}.{have[1]} (at least {need})",
        have >= MIN_PYTHON,
        f"install Python {need}, or name one: make PYTHON=/path/to/python3",
    )


def _tun() -> Check:
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
        seen = True
    except OSError:
        seen = False
    return Check(
        "/dev/net/tun opens (network cards of virtual machines)",
        seen,
        "load the module (modprobe tun), or give the container this device",
    )


def _namespaces() -> Check:
    ok = Path("/proc/self/ns/net").exists() and "overlay" in _filesystems()
    return Check(
        "kernel has network namespaces and overlayfs",
        ok,
        "load the module (modprobe overlay), or use a kernel that has both",
    )


def _filesystems() -> str:
    return Path("/proc/filesystems").read_text()


def _memory() -> Check:
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("MemTotal"))
    gib = kib / 1024**2
    return Check(
        f"memory is {gib:.1f} GiB (at least {MIN_MEMORY_GIB})",
        gib >= MIN_MEMORY_GIB,
        f"use a host with {MIN_MEMORY_GIB} GiB or more",
    )


def _disk(project: Path, cache: Path) -> list[Check]:
    held = (size_of(cache) + size_of(project / ".fleetfoot")) / 1024**3
    need = max(MIN_DISK_GIB - held, MIN_FREE_GIB)
    found = []
    for what, path in (("checkout", project), ("cache folder", cache)):
        there = next(p for p in (path, *path.parents) if p.exists())
        free = shutil.disk_usage(there).free / 1024**3
        found.append(
            Check(
                f"{free:.0f} GiB free for the {what} (at least {need:.0f},"
                f" beside the {held:.0f} that Fleetfoot has)",
                free >= need,
                f"free some space on the file system of {there},"
                " or set FLEETFOOT_CACHE to a folder elsewhere",
            )
        )
    return found


def size_of(folder: Path) -> int:
    """Return the bytes that a folder takes on disk; 0 where there is none."""
    seen: dict[tuple[int, int], int] = {}
    for path, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):  # others go on while we look
                found = os.lstat(f"{path}/{name}")
                seen[found.st_dev, found.st_ino] = found.st_blocks * _BLOCK
    return sum(seen.values())


def _apt() -> Check:
    return Check(
        "apt-get is there", shutil.which("apt-get") is not None, "use a host with Debian's apt"
    )
