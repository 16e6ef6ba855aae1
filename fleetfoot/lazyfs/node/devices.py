"""Sector images as file systems: attached, mounted, and mended when their server was away.

What is complete is mounted from its file, with no daemon in the path. All else is a network block
device of the kernel, whose reads wait while its server is restarted, beneath a device that can be
made to read from elsewhere while it is mounted: blocks that were fetched ahead are read from the
file then (`Folder.ahead`), and all of them once the layer is complete. What is attached, and what
is read from where, is known from the kernel alone, so nothing of it can be lost.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fleetfoot.errors import FleetfootError
from fleetfoot.lazyfs.node import loops, mapper, nbd
from fleetfoot.lazyfs.node.mapper import Segment
from fleetfoot.lazyfs.node.mounts import mount, mounted, unmount
from fleetfoot.lazyfs.node.store import Folder

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping, Sequence

    from fleetfoot.lazyfs.table import Table

__all__ = ["Devices", "unmounted"]

_PAUSES = (0.1, 0.2, 0.5, 1.0)  # seconds between attempts; the last one again and again
_PATIENCE = 15.0  # seconds that a mount waits for the server
_AWAY = (errno.ECONNREFUSED, errno.ENOENT, errno.ECONNRESET, errno.EPIPE, errno.EAGAIN)
_HEAD = 4096  # bytes of a sector image that hold its superblock
_OWN = "fleetfoot-lazy:"  # how the kernel is told whose a device is
#: Milliseconds after which the kernel looks whether a request's connection is still there: what was
#: on its way when the server died is asked again after that, and not after half a minute.
_IO_TIMEOUT = "2000"
_BLOCK = Path("/sys/block")
_LOOK = 0.5  # seconds between two looks at what can be read from files
#: Seconds for which a change of what is read from where may hold reads back: it waits for those in
#: flight, of which one may wait for its registry. It is given up then, and tried again.
_HELD = 5.0
_LATER, _LATEST = 30.0, 480.0  # seconds until then, twice as many each time, and at most
_DEVICES, _FILES, _BOTH = "nbd", "file", "both"
#: KiB. What comes over a network is not to bring much that nobody asked for.
_READ_AHEAD = {_DEVICES: 128, _BOTH: 128, _FILES: 256}


class Devices:
    """The devices of a node's sector images. Threads may share it.

    Args:
        root: The node's folder.
        server: Socket of the server of sectors.
        dead_timeout: Seconds for which reads wait for the server.
        log: Takes a line for the journal.
    """

    def __init__(
        self, root: Path, server: Path, *, dead_timeout: int, log: Callable[[str], object]
    ) -> None:
        self._root, self._server = root, server
        self._dead_timeout, self._log = dead_timeout, log
        self._lock = threading.Lock()
        self._busy: dict[str, threading.Lock] = {}
        self._mending: set[str] = set()
        self._again: set[str] = set()  # those that died since their mending began
        self._watching = False
        # Layers that a server has a part in, by name: what was said of them when they were last
        # brought up to date.
        self._seen: dict[str, tuple[int, ...] | None] = {}
        self._own: set[str] = set()  # layers with whose devices this process has begun
        self._changing: set[str] = set()
        self._refused: dict[str, tuple[float, float]] = {}  # not before when, and after what pause
        self._has_mapper = True

    def way(self, target: Path, there: Mapping[Path, str] | None = None) -> str:
        """Return how what is mounted at a place is read.

        Args:
            target: The place.
            there: What is mounted (`mounted`), where that was found already.

        Returns:
            `nbd`, `file`, `both`, or nothing where nothing is mounted.
        """
        source = (mounted() if there is None else there).get(target, "")
        if source.startswith("/dev/dm-"):
            return _way(mapper.beneath(int(source.removeprefix("/dev/dm-"))))
        return _DEVICES if source.startswith("/dev/nbd") else _FILES if source else ""

    def mount(self, folder: Folder, target: Path) -> None:
        """Mount a sector image, unless it is mounted there.

        Raises:
            OSError: The server does not come, or the kernel refuses.
        """
        if target in mounted():  # who is busy with the layer need not be waited for
            return
        with self._alone(folder.name):
            if target in mounted():
                return
            target.mkdir(parents=True, exist_ok=True)
            with folder.alone():  # what is complete may be evicted until it is mounted
                if folder.is_complete:
                    with contextlib.suppress(OSError):  # a kernel without file-backed mounts
                        mount(str(folder.data), target, "erofs")
                        return
            mount(self._device(folder), target, "erofs")

    def attach(self, folder: Folder) -> None:
        """Attach a sector image that will be mounted, and fetch what every mount reads.

        Raises:
            OSError: As for `mount`.
        """
        with self._alone(folder.name):
            if folder.is_complete:
                return
            device = self._device(folder)
        with Path(device).open("rb", buffering=0) as opened:
            opened.read(_HEAD)

    def release(self, name: str) -> bool:
        """Take a layer's devices away; return False while something is mounted from them."""
        alone = self._alone(name)
        if not alone.acquire(blocking=False):  # it is just being mounted, or changed
            return False
        try:
            # Whatever it is mounted from in whichever namespace, the kernel knows.
            if not mapper.remove(name):
                return False
            with self._lock:
                self._seen.pop(name, None)
                self._refused.pop(name, None)
            return _detached(name)
        finally:
            alone.release()

    def watch(self) -> None:
        """From now on, mend devices when their connections die, and have them read from files.

        Raises:
            OSError: This kernel has no network block devices.
        """
        with self._lock:
            if self._watching:
                return
            deaths = nbd.Deaths()
            self._watching = True
        threading.Thread(target=self._watch, args=(deaths,), daemon=True).start()
        threading.Thread(target=self._follow, daemon=True).start()

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

    def _follow(self) -> None:
        """Have layers read from their files as the server of sectors says; does not return."""
        do = self._resume
        while True:
            try:
                do()
            except Exception as error:  # reads go on by the network
                self._log(f"what can be read from files: {type(error).__name__}: {error}")
            time.sleep(_LOOK)
            do = self._look

    def _resume(self) -> None:
        """Take up devices that an earlier process has left; changes that it had begun, see later.

        That may have to wait for a mount, and others not for that.
        """
        for name in mapper.found():
            try:
                if Folder.of(self._root, name).path.exists():
                    self._learn(name)
                else:
                    self.release(name)
            except (OSError, FleetfootError) as error:
                self._log(f"the device of {name}: {error}")

    def _learn(self, name: str) -> None:
        with self._lock:
            self._seen.setdefault(name, None)

    def _look(self) -> None:
        """Begin what is to be changed: each in a thread of its own, for it may have to wait."""
        with self._lock:
            known = list(self._seen.items())
        for name, seen in known:
            if Folder.of(self._root, name).news == seen:
                continue
            with self._lock:
                not_before, _ = self._refused.get(name, (0.0, 0.0))
                if name in self._changing or not_before > time.monotonic():
                    continue
                self._changing.add(name)
            threading.Thread(target=self._changed, args=(name,), daemon=True).start()

    def _changed(self, name: str) -> None:
        folder = Folder.of(self._root, name)
        try:
            with self._alone(name):
                seen = folder.news
                self._take_up(name)
                is_done = self._brought_up_to_date(folder)
                with self._lock:
                    self._refused.pop(name, None)
                    if is_done:
                        self._seen.pop(name, None)
                    elif name in self._seen:
                        self._seen[name] = seen
        except Exception as error:
            with self._lock:
                _, before = self._refused.get(name, (0.0, _LATER / 2))
                pause = min(before * 2, _LATEST)
                self._refused[name] = time.monotonic() + pause, pause
            self._log(f"{name} is not brought up to date, again in {pause:.0f} s: {error}")
        finally:
            with self._lock:
                self._changing.discard(name)

    def _brought_up_to_date(self, folder: Folder) -> bool:
        """Have a device read from the file what can be; return whether its server has no part."""
        if not (folder.is_complete or folder.ahead()):
            return False
        name = folder.name
        number, live = mapper.found().get(name), mapper.table(name)
        if number is None or not live:  # it was taken away
            return True
        table = folder.table()
        loop = next((each.device for each in live if _is_loop(each.device)), "")
        with contextlib.ExitStack() as made:
            # Whoever evicts sees the loop device from here on; what it evicted before, it unmarked.
            loop = loop or made.enter_context(loops.attached(folder.data))
            with folder.alone():
                is_complete, ahead = folder.is_complete, folder.ahead()
            device = "" if is_complete else _number_of(f"nbd{self._attached(folder)}")
            here = [range(table.block_count)] if is_complete else ahead
            if (wanted := _divided(table, here, device, loop)) != live:
                mapper.change(name, wanted, _HELD)
                self._log(f"{name}: {_part(wanted, loop):.0%} of it is read from its file")
        mapper.set_read_ahead(number, _READ_AHEAD[_FILES if is_complete else _BOTH])
        if is_complete and not _detached(name):
            raise OSError(errno.EBUSY, "somebody has its network block device open")
        return is_complete

    def _alone(self, name: str) -> threading.Lock:
        with self._lock:
            return self._busy.setdefault(name, threading.Lock())

    def _take_up(self, name: str) -> None:
        """Take back what an earlier process had begun with a device, which may be suspended."""
        with self._lock:
            if name in self._own:
                return
            self._own.add(name)
        with contextlib.suppress(OSError):  # there is none, or it never was in use
            mapper.settle(name)

    def _device(self, folder: Folder) -> str:
        """Return what to mount a layer from, made if need be."""
        name = folder.name
        self._take_up(name)
        number = mapper.found().get(name)
        if number is None or not mapper.table(name):
            attached = f"nbd{self._attached(folder)}"
            number = self._mapped(folder, _number_of(attached))
            if number is None:
                return f"/dev/{attached}"
            mapper.set_read_ahead(number, _READ_AHEAD[_DEVICES])
        self._learn(name)
        return f"/dev/dm-{number}"

    def _mapped(self, folder: Folder, device: str) -> int | None:
        """Make a device above the network's, whose number is returned; None where that fails."""
        try:
            return mapper.make(folder.name, _divided(folder.table(), [], device, ""))
        except (OSError, FleetfootError) as error:
            if self._has_mapper:  # told once
                self._log(f"layers stay on network block devices until their next mount: {error}")
            self._has_mapper = False
            return None

    def _attached(self, folder: Folder) -> int:
        number = _attached().get(folder.name)
        return self._attach(folder.name) if number is None else number

    def _attach(self, name: str) -> int:
        self.watch()
        connection, export = self._connected(name)
        with connection:
            number = nbd.attach(connection, export, _OWN + name, self._dead_timeout)
        with contextlib.suppress(OSError):
            (_BLOCK / f"nbd{number}" / "queue" / "io_timeout").write_text(_IO_TIMEOUT)
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
    """Return our network block devices: folders' names, and numbers."""
    found = {}
    for device in _BLOCK.iterdir():  # asked for often: cheaper than a glob
        if device.name.startswith("nbd"):
            with contextlib.suppress(OSError):  # nobody uses it
                backend = (device / "backend").read_text().strip()
                if backend.startswith(_OWN):
                    found[backend.removeprefix(_OWN)] = int(device.name.removeprefix("nbd"))
    return found


def _detached(name: str) -> bool:
    """Take a network block device away; return False while something is read from it."""
    number = _attached().get(name)
    return number is None or nbd.detach(number)


def _number_of(device: str) -> str:
    """Return `major:minor` of a device by the kernel's name of it."""
    return (_BLOCK / device / "dev").read_text().strip()


def _is_loop(device: str) -> bool:
    return device.startswith(f"{loops.MAJOR}:")


def _way(beneath: set[str]) -> str:
    kinds = {name.rstrip("0123456789") for name in beneath}
    return _BOTH if kinds == {"nbd", "loop"} else _FILES if kinds == {"loop"} else _DEVICES


def _part(segments: Sequence[Segment], device: str) -> float:
    read = sum(each.count for each in segments if each.device == device)
    return read / sum(each.count for each in segments)


def _divided(table: Table, here: Sequence[range], away: str, file: str) -> list[Segment]:
    """Divide a layer into what is read from its file and what comes from elsewhere.

    Args:
        table: Of the layer.
        here: Blocks that its file has, ascending.
        away: Device for the rest, `major:minor`.
        file: Device of the file.
    """
    per_block, end = table.block // mapper.SECTOR, table.length // mapper.SECTOR
    segments, place = list[Segment](), 0
    for run in [*here, range(table.block_count, table.block_count)]:  # what comes after the last
        first, behind = (min(block * per_block, end) for block in (run.start, run.stop))
        for start, stop, device in ((place, first, away), (first, behind, file)):
            if start < stop:
                segments.append(Segment(start, stop - start, device))
        place = behind
    return segments


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
