"""Sector images as file systems: attached, mounted, and mended when their server was away.

What is complete is mounted from its file, with no daemon in the path. All else is a network block
device of the kernel, whose reads wait while its server is restarted.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from typing import TYPE_CHECKING

from fleetfoot.lazyfs.node import nbd
from fleetfoot.lazyfs.node.mounts import mount, mounted, unmount

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from fleetfoot.lazyfs.node.store import Folder

__all__ = ["Devices"]

_PAUSE = 0.1  # seconds between attempts to reach the server
_PATIENCE = 15.0  # seconds that a mount waits for the server
_FIRST_ERRORS = (errno.ECONNREFUSED, errno.ENOENT, errno.ECONNRESET, errno.EPIPE)


class Devices:
    """The devices of a node's sector images. Threads may share it.

    Args:
        server: Socket of the server of sectors.
        state: File that remembers devices until the machine is restarted.
        dead_timeout: Seconds for which reads wait for the server.
        log: Takes a line for the journal.
    """

    def __init__(
        self, server: Path, state: Path, *, dead_timeout: int, log: Callable[[str], object]
    ) -> None:
        self._server, self._state = server, state
        self._dead_timeout, self._log = dead_timeout, log
        self._lock = threading.RLock()
        self._numbers: dict[str, int] = json.loads(state.read_text()) if state.exists() else {}

    def way(self, image: str) -> str:
        """Return how a sector image is read: `nbd`, or `file`."""
        with self._lock:
            return "nbd" if image in self._numbers else "file"

    def mount(self, folder: Folder, target: Path) -> None:
        """Mount a sector image, unless it is mounted there.

        Raises:
            OSError: The server does not come, or the kernel refuses.
        """
        if target in mounted():
            return
        target.mkdir(parents=True, exist_ok=True)
        if folder.is_complete:
            with contextlib.suppress(OSError):  # a kernel without file-backed mounts
                mount(str(folder.data), target, "erofs")
                return
        with self._lock:
            number = self._numbers.get(folder.image)
            if number is None or not nbd.is_attached(number):
                number = self._attach(folder.image)
        mount(f"/dev/nbd{number}", target, "erofs")

    def release(self, image: str) -> None:
        """Take a device away that nothing is mounted from."""
        with self._lock:
            number = self._numbers.pop(image, None)
            self._keep()
        if number is not None and nbd.is_attached(number):
            nbd.disconnect(number)

    def mend(self) -> None:
        """Give every device whose connection died a new one; what has one is left alone."""
        with self._lock:
            known = dict(self._numbers)
        for image, number in known.items():
            if nbd.is_attached(number):
                self._reattach(image, number)

    def watch(self) -> None:
        """Mend devices when their connections die; does not return."""
        deaths = nbd.Deaths()
        self.mend()  # those that died while nobody watched
        while True:
            number = deaths.wait()
            with self._lock:
                image = next((i for i, n in self._numbers.items() if n == number), None)
            if image is None:
                continue
            self._log(f"nbd{number}: its server is away; reads wait")
            threading.Thread(target=self._mended, args=(image, number), daemon=True).start()

    def _mended(self, image: str, number: int) -> None:
        until = time.monotonic() + self._dead_timeout
        while time.monotonic() < until:
            try:
                self._reattach(image, number)
            except OSError as error:
                self._log(f"nbd{number}: {error}")
                time.sleep(_PAUSE)
                continue
            self._log(f"nbd{number}: its server is back")
            return

    def _reattach(self, image: str, number: int) -> None:
        connection, _ = self._connected(image)
        with connection:
            nbd.reattach(number, connection, image)

    def _attach(self, image: str) -> int:
        connection, export = self._connected(image)
        with connection:
            number = nbd.attach(connection, export, image, self._dead_timeout)
        self._numbers[image] = number
        self._keep()
        return number

    def _connected(self, image: str) -> tuple[socket.socket, nbd.Export]:
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                return nbd.connect(self._server, image)
            except OSError as error:
                if error.errno not in _FIRST_ERRORS or time.monotonic() > until:
                    raise
            time.sleep(_PAUSE)

    def _keep(self) -> None:
        (part := self._state.with_name(f".{self._state.name}")).write_text(
            json.dumps(self._numbers)
        )
        part.replace(self._state)


def unmounted(target: Path) -> bool:
    """Unmount a sector image; return False while it is in use."""
    try:
        unmount(target)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        if error.errno not in {errno.EINVAL, errno.ENOENT}:  # nothing is mounted there
            raise
    with contextlib.suppress(OSError):
        os.rmdir(target)  # noqa: PTH106
    return True
