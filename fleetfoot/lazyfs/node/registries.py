"""The registries whose lazy forms a node believes."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from fleetfoot.errors import FleetfootError
from fleetfoot.lazyfs.distribution import Access, Repository

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["TRUSTED", "warm"]

TRUSTED = "lazy"
"""File beside a registry's `hosts.toml` that says to believe its lazy forms. Nothing ties a lazy
form to its image but who may push it: whoever can, says what containers read."""

_NOTHING = "sha256:" + "0" * 64
_ATTEMPTS, _PAUSE = 60, 2.0  # seconds between attempts: a machine that boots has no network yet
_LOWEST = 19


def warm(certs: Path) -> threading.Thread:
    """Ask each of them for nothing, in the background and at the lowest priority.

    What a process needs for its first request (code, certificates) is in memory then: the first
    image of a machine does not wait for it.

    Args:
        certs: Folder with containerd's descriptions of registries.

    Returns:
        The thread that does it.
    """
    thread = threading.Thread(target=_warm, args=(certs,), daemon=True)
    thread.start()
    return thread


def _warm(certs: Path) -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)  # of this thread alone
    hosts = sorted(path.parent.name for path in certs.glob(f"*/{TRUSTED}"))
    for _ in range(_ATTEMPTS):
        hosts = [host for host in hosts if not _asked(certs, host)]
        if not hosts:
            return
        time.sleep(_PAUSE)


def _asked(certs: Path, host: str) -> bool:
    try:
        Repository(Access.of_containerd(certs, host), "fleetfoot").has(_NOTHING)
    except (FleetfootError, OSError):  # the first pull says what is wrong
        return False
    return True
