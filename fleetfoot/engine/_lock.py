"""The CLI's lock files, and a flock on ours that children hold too.

A lock is a JSON file of pid, user, host and time. The CLI knows no more. Ours carries a flock as
well: it is free only when the engine and all its children have ended, so that a new run never works
beside the orphans of a killed one.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import socket
import threading
import time
import uuid
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fleetfoot.engine._backend import dump
from fleetfoot.engine._errors import LockedError
from fleetfoot.engine._state import now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# How long the children of a killed engine may take to see that it is gone.
_ORPHANS: Final = 10.0
_POLL: Final = 0.2


@contextlib.contextmanager
def hold(folder: Path, wait: float, tell: Callable[[str], None] = lambda _: None) -> Iterator[int]:
    """Holds the stack's lock.

    Args:
        folder: Where the stack's lock files are.
        wait: Seconds to wait for another run to end; 0 to say at once who holds the lock.
        tell: Takes a line that says who is waited for.

    Yields:
        The descriptor that children inherit.

    Raises:
        LockedError: Another live run holds it.
    """
    deadline = time.monotonic() + wait
    folder.mkdir(parents=True, exist_ok=True)
    mine = folder / f"{uuid.uuid4()}.json"
    pause = threading.Event()
    told = False
    while True:
        handle = _try(folder, mine)
        if isinstance(handle, int):
            break
        if time.monotonic() >= deadline:
            raise LockedError(
                "The stack is locked by " + "; ".join(_describe(lock) for lock in handle),
                "Two runs at once would lose resources, so this one did nothing",
                "Wait for the other to end; if it runs on another host and is dead, remove "
                + ", ".join(str(lock) for lock in handle),
            )
        if not told:
            told = True
            tell("waiting for another run to end: " + "; ".join(map(_describe, handle)))
        pause.wait(_POLL)
    try:
        yield handle
    finally:
        mine.unlink(missing_ok=True)
        os.close(handle)


def _try(folder: Path, mine: Path) -> int | list[Path]:
    """Takes the lock, or returns the locks in the way. Both of two rivals give way."""
    if others := _others(folder, mine):
        return others
    # Locked and filled under another name first: no reader sees an empty or unlocked lock.
    spare = mine.with_suffix(".tmp")
    handle = os.open(spare, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    holder = {
        "pid": os.getpid(),
        "username": getpass.getuser(),
        "hostname": socket.gethostname(),
        "timestamp": now(),
    }
    os.write(handle, dump(holder).encode())
    spare.rename(mine)
    if others := _others(folder, mine):
        mine.unlink()
        os.close(handle)
        return others
    return handle


def _others(folder: Path, mine: Path) -> list[Path]:
    """The locks of live runs; those of dead ones on this host are removed."""
    alive = []
    for lock in sorted(folder.glob("*.json")):
        if lock == mine:
            continue
        content = _read(lock)
        if content is not None and _dead(content):
            _await_orphans(lock)
            lock.unlink(missing_ok=True)
        elif lock.exists():
            alive.append(lock)
    return alive


def _dead(content: dict[str, Any]) -> bool:
    """Whether the holder is certainly gone: a process of this host that is not there any more."""
    if content.get("hostname") != socket.gethostname():
        return False
    pid = int(content.get("pid", 0))
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    with contextlib.suppress(OSError, TypeError, ValueError, KeyError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] in "ZX":
            # It ended; whoever started it has not asked yet how.
            return True
        # The pid may be another process's by now: one that started after the lock was written.
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        started = time.time() - uptime + int(fields[19]) / os.sysconf("SC_CLK_TCK")
        locked = datetime.fromisoformat(content["timestamp"]).timestamp()
        return started > locked + 1
    return False


def _await_orphans(lock: Path) -> None:
    """Waits until the killed engine's children have let go of its flock."""
    deadline = time.monotonic() + _ORPHANS
    pause = threading.Event()
    with contextlib.suppress(FileNotFoundError):
        handle = os.open(lock, os.O_RDONLY)
        try:
            while time.monotonic() < deadline:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                pause.wait(_POLL / 10)
        finally:
            os.close(handle)


def _read(lock: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(lock.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _describe(lock: Path) -> str:
    content = _read(lock) or {}
    return (
        f"{content.get('username', '?')}@{content.get('hostname', '?')} "
        f"(pid {content.get('pid', '?')}) since {content.get('timestamp', '?')}"
    )
