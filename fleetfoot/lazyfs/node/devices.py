"""Sector images as file systems: attached, mounted, and mended when their server was away.

What is complete is mounted from its file, with no daemon in the path. All else is a network block
device of the kernel, whose reads wait while its server is restarted. What is attached is known from
the kernel alone, so nothing of it can be lost.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fleetfoot.lazyfs.node import nbd
from fleetfoot.lazyfs.node.mounts import mount, mounted, unmount

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from fleetfoot.lazyfs.node.store import Folder

__all__ = ["Devices", "unmounted"]

_PAUSES = (0.1, 0.2, 0.5, 1.0)  # seconds between attempts; the last one again and again
_PATIENCE = 15.0  # seconds that a mount waits for the server
_AWAY = (errno.ECONNREFUSED, errno.ENOENT, errno.ECONNRESET, errno.EPIPE, errno.EAGAIN)
_HEAD = 4096  # bytes of a sector image that hold its superblock
_OWN = "fleetfoot-lazy:"  # how the kernel is told whose a device is
#: Milliseconds after which the kernel looks whether a request's connection is still there: what was
#: on its way when the server died is asked again after that, and not after half a minute.
_IO_TIMEOUT = "2000"


class Devices:
    """The devices of a node's sector images. Threads may share it.

    Args:
        server: Socket of the server of sectors.
        dead_timeout: Seconds for which reads wait for the server.
        log: Takes a line for the journal.
    """

    def __init__(self, server: Path, *, dead_timeout: int, log: Callable[[str], object]) -> None:
        self._server, self._dead_timeout, self._log = server, dead_timeout, log
        self._lock = threading.Lock()
        self._busy: dict[str, threading.Lock] = {}
        self._mending: set[str] = set()
        self._again: set[str] = set()  # those that died since their mending began
        self._watching = False

    def way(self, target: Path) -> str:
        """Return what is mounted at a place: `nbd`, `file`, or nothing."""
        source = mounted().get(target, "")
        return "nbd" if source.startswith("/dev/nbd") else "file" if source else ""

    def mount(self, folder: Folder, target: Path) -> None:
        """Mount a sector image, unless it is mounted there.

        Raises:
            OSError: The server does not come, or the kernel refuses.
        """
        with self._alone(folder):
            if target in mounted():
                return
            target.mkdir(parents=True, exist_ok=True)
            with folder.alone():  # what is complete may be evicted until it is mounted
                if folder.is_complete:
                    with contextlib.suppress(OSError):  # a kernel without file-backed mounts
                        mount(str(folder.data), target, "erofs")
                        return
            mount(f"/dev/nbd{self._attached(folder)}", target, "erofs")

    def attach(self, folder: Folder) -> None:
        """Attach a sector image that will be mounted, and fetch what every mount reads.

        Raises:
            OSError: As for `mount`.
        """
        with self._alone(folder):
            if folder.is_complete:
                return
            number = self._attached(folder)
        with Path(f"/dev/nbd{number}").open("rb", buffering=0) as device:
            device.read(_HEAD)

    def release(self, name: str) -> bool:
        """Take a device away; return False while something is mounted from it."""
        number = _attached().get(name)
        if number is None:
            return True
        try:
            # Whoever has it mounted, in whichever namespace, keeps others from having it alone.
            alone = os.open(f"/dev/nbd{number}", os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EBUSY:
                return False
            raise
        try:
            nbd.disconnect(number)
        finally:
            os.close(alone)
        return True

    def watch(self) -> None:
        """Mend devices from now on, when their connections die.

        Raises:
            OSError: This kernel has no network block devices.
        """
        with self._lock:
            if self._watching:
                return
            deaths = nbd.Deaths()
            self._watching = True
        threading.Thread(target=self._watch, args=(deaths,), daemon=True).start()

    def _watch(self, deaths: nbd.Deaths) -> None:
        # First those that died while nobody watched. What has a connection drops the new one.
        self._mend_all()
        while True:
            try:
                number = deaths.wait()
            except OSError as error:  # more deaths at once than the kernel keeps
                self._log(f"network block devices: {error}")
                self._mend_all()
                continue
            name = next((name for name, n in _attached().items() if n == number), None)
            if name is not None:
                self._log(f"nbd{number}: its server is away; reads wait")
                self._mend(name)

    def _mend_all(self) -> None:
        for name in _attached():
            self._mend(name)

    def _mend(self, name: str) -> None:
        with self._lock:
            self._again.add(name)
            if name in self._mending:
                return
            self._mending.add(name)
        threading.Thread(target=self._mended, args=(name,), daemon=True).start()

    def _mended(self, name: str) -> None:
        attempt = 0
        while self._is_to_mend(name):
            while (number := _attached().get(name)) is not None:
                try:
                    connection, _ = nbd.connect(self._server, name)
                    with connection:
                        nbd.reattach(number, connection, _OWN + name)
                except OSError as error:
                    pause = _PAUSES[min(attempt, len(_PAUSES) - 1)]
                    attempt += 1
                    if attempt == len(_PAUSES):
                        self._log(f"nbd{number}: {error}; tried again until its server is back")
                    time.sleep(pause)
                else:
                    self._log(f"nbd{number} has its server")
                    break

    def _is_to_mend(self, name: str) -> bool:
        """Whether it died since the last look; who says no is done with it."""
        with self._lock:
            if name in self._again:
                self._again.discard(name)
                return True
            self._mending.discard(name)
            return False

    def _alone(self, folder: Folder) -> threading.Lock:
        with self._lock:
            return self._busy.setdefault(folder.name, threading.Lock())

    def _attached(self, folder: Folder) -> int:
        number = _attached().get(folder.name)
        return self._attach(folder.name) if number is None else number

    def _attach(self, name: str) -> int:
        self.watch()
        connection, export = self._connected(name)
        with connection:
            number = nbd.attach(connection, export, _OWN + name, self._dead_timeout)
        with contextlib.suppress(OSError):
            Path(f"/sys/block/nbd{number}/queue/io_timeout").write_text(_IO_TIMEOUT)
        return number

    def _connected(self, name: str) -> tuple[socket.socket, nbd.Export]:
        until, attempt = time.monotonic() + _PATIENCE, 0
        while True:
            try:
                return nbd.connect(self._server, name)
            except OSError as error:
                if error.errno not in _AWAY or time.monotonic() > until:
                    raise
            time.sleep(_PAUSES[min(attempt, len(_PAUSES) - 1)])
            attempt += 1


def _attached() -> dict[str, int]:
    """Return our devices: folders' names, and numbers."""
    found = {}
    for path in Path("/sys/block").glob("nbd*/backend"):
        with contextlib.suppress(OSError):
            backend = path.read_text().strip()
            if backend.startswith(_OWN):
                found[backend.removeprefix(_OWN)] = int(path.parent.name.removeprefix("nbd"))
    return found


def unmounted(target: Path) -> bool:
    """Unmount a sector image; return False while it is in use."""
    try:
        unmount(target)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        if error.errno not in {errno.EINVAL, errno.ENOENT}:  # nothing is mounted there
            raise
    return True
