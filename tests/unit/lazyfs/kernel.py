"""The kernel's devices, as far as layers go: behind the calls that make them, and in its /sys."""

from __future__ import annotations

import contextlib
import errno
import itertools
import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleetfoot.lazyfs.node import devices, loops, mapper, nbd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

__all__ = ["Kernel", "Mapped"]

COMMANDS = {
    0xC138FD03: "create",
    0xC138FD04: "remove",
    0xC138FD06: "resume",
    0xC138FD07: "status",
    0xC138FD09: "load",
    0xC138FD0A: "clear",
    0xC138FD0C: "table",
}
Row = tuple[int, int, str]
"""Of a table: first sector, how many, `device offset`."""


@dataclass
class Mapped:
    """A device of device-mapper."""

    number: int
    uuid: str
    live: list[Row] = field(default_factory=list)
    loaded: list[Row] | None = None
    suspended: bool = True


class Kernel:
    """Keeps devices, and shows them in a folder as /sys/block does.

    Attributes:
        block: That folder.
        mapped: Devices of device-mapper, by name.
        mounts: What is mounted, by where.
        said: Commands to device-mapper, in order.
        before: Is called with each of them before it is carried out.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.block, self.mapped, self.mounts = folder, dict[str, Mapped](), dict[Path, str]()
        self.said, self.has_mapper = list[str](), True
        self.before: Callable[[str], Any] = lambda _: None
        self._loops: dict[str, int] = {}  # open ones, by device
        self._numbers = itertools.count()
        folder.mkdir()
        for module in (devices, loops, mapper):
            monkeypatch.setattr(module, "_BLOCK", folder)
        monkeypatch.setattr(mapper, "_ioctl", self._ioctl)
        monkeypatch.setattr(loops, "attached", self._loop)
        monkeypatch.setattr(devices, "mount", self._mount)
        monkeypatch.setattr(devices, "mounted", lambda: dict(self.mounts))
        monkeypatch.setattr(nbd, "connect", lambda *_: (contextlib.nullcontext(), None))
        monkeypatch.setattr(nbd, "attach", self._attach)
        monkeypatch.setattr(nbd, "detach", self._detach)

    def devices(self) -> set[str]:
        """Return the names of all."""
        return {path.name for path in self.block.iterdir()}

    def read(self, path: str) -> str:
        """Return a file of /sys/block."""
        return (self.block / path).read_text()

    def table(self, layer: str) -> list[Row]:
        """Return what a layer's device is read from."""
        return self.mapped[f"fleetfoot-lazy-{layer}"].live

    def _mount(self, source: str, target: Path, _kind: str) -> None:
        if source.startswith("/dev/") and source.removeprefix("/dev/") not in self.devices():
            raise OSError(errno.ENOENT, source)
        self.mounts[target] = source

    def _attach(self, _connection: Any, _export: Any, identifier: str, _timeout: int) -> int:
        number = next(self._numbers)
        shown = self._shown(f"nbd{number}", f"43:{number * 32}")  # with room for partitions
        (shown / "backend").write_text(f"{identifier}\n")
        return number

    def _detach(self, number: int) -> bool:
        device = f"nbd{number}"
        used = any(self.read(f"{device}/dev").strip() in row[2].split() for row in self._rows())
        if not used and f"/dev/{device}" not in self.mounts.values():
            shutil.rmtree(self.block / device)
            return True
        return False

    @contextlib.contextmanager
    def _loop(self, file: Path) -> Iterator[str]:
        assert file.exists()
        number = next(self._numbers)
        (self._shown(f"loop{number}", device := f"7:{number}") / "loop").mkdir()
        (self.block / f"loop{number}/loop/backing_file").write_text(f"{file}\n")
        self._loops[device] = number
        try:
            yield device
        finally:
            self._closed(device)

    def _closed(self, device: str = "") -> None:
        """Forget loop devices that nobody has open: the maker of this one, and tables."""
        for each, number in list(self._loops.items()):
            if each == device:
                self._loops[each] = -number - 1  # its maker has closed it
            if self._loops[each] < 0 and not any(each in row[2].split() for row in self._rows()):
                shutil.rmtree(self.block / f"loop{-self._loops.pop(each) - 1}")

    def _rows(self) -> list[Row]:
        return [row for each in self.mapped.values() for row in [*each.live, *(each.loaded or [])]]

    def _shown(self, name: str, device: str) -> Path:
        (self.block / name / "queue").mkdir(parents=True)
        (self.block / name / "dev").write_text(f"{device}\n")
        return self.block / name

    def _ioctl(self, request: int, buffer: Any) -> None:
        if not self.has_mapper:
            raise OSError(errno.ENOENT, "no such file")
        command = COMMANDS[request]
        size, start, count = struct.unpack_from("=III", buffer, 12)
        name, uuid = (buffer.raw[at : at + 128].rstrip(b"\0").decode() for at in (48, 176))
        self.said.append(command)
        self.before(command)
        if command == "create":
            if name in self.mapped:
                raise OSError(errno.EBUSY, "there is one of that name")
            self.mapped[name] = Mapped(next(self._numbers), uuid)
        if name not in self.mapped:
            raise OSError(errno.ENXIO, "no such device")
        data = buffer.raw[start:size]
        flags = struct.unpack_from("=I", buffer, 28)[0]
        answer = getattr(self, f"_{command}", self._nothing)(name, count, data, flags) or b""
        made = self.mapped.get(name)
        number = made.number if made else 0
        device = 253 << 8 | number & 0xFF | (number & ~0xFF) << 12
        flags = 1 << 8 if len(answer) > size - 312 else 0
        struct.pack_into("=II", buffer, 12, 312 + len(answer), 312)
        struct.pack_into("=I", buffer, 20, len(made.live) if made else 0)
        struct.pack_into("=I", buffer, 28, flags)
        struct.pack_into("=Q", buffer, 40, device)
        if not flags:
            buffer[312 : 312 + len(answer)] = answer

    def _nothing(self, *_: Any) -> None:
        pass

    def _load(self, name: str, count: int, data: bytes, flags: int) -> None:
        assert flags & 1, "a network block device that is read-only cannot be opened otherwise"
        rows, place, end = list[Row](), 0, 0
        for _ in range(count):
            first, length, _, step, kind = struct.unpack_from("=QQiI16s", data, place)
            assert kind.rstrip(b"\0") == b"linear"
            assert (first, place % 8) == (end, 0)
            where = data[place + 40 :].partition(b"\0")[0].decode()
            known = {path.read_text().strip() for path in self.block.glob("*/dev")}
            assert where.split()[0] in known, "a table of devices that are not there is refused"
            rows.append((first, length, where))
            place, end = place + step, first + length
        mapped = self.mapped[name]
        mapped.loaded = rows
        shown = self.block / f"dm-{mapped.number}"
        if not shown.exists():  # only from here on: add_disk comes with the first table
            self._shown(shown.name, f"253:{mapped.number}")
            (shown / "dm").mkdir()
            (shown / "dm/name").write_text(f"{name}\n")
        self._closed()
        self._linked(mapped)

    def _resume(self, name: str, _count: int, _data: bytes, flags: int) -> None:
        assert flags == 1 << 10
        mapped = self.mapped[name]
        if mapped.loaded is None and not mapped.live:
            raise OSError(errno.EINVAL, "no table")
        mapped.live, mapped.loaded, mapped.suspended = mapped.loaded or mapped.live, None, False
        (self.block / f"dm-{mapped.number}/queue/read_ahead_kb").write_text("128\n")
        self._closed()
        self._linked(mapped)

    def _clear(self, name: str, *_: Any) -> None:
        self.mapped[name].loaded = None
        self._closed()
        self._linked(self.mapped[name])

    def _remove(self, name: str, *_: Any) -> None:
        mapped = self.mapped[name]
        if f"/dev/dm-{mapped.number}" in self.mounts.values():
            raise OSError(errno.EBUSY, "it is open")
        del self.mapped[name]
        shutil.rmtree(self.block / f"dm-{mapped.number}", ignore_errors=True)
        self._closed()

    def _table(self, name: str, *_: Any) -> bytes:
        said = b""
        for first, length, where in self.mapped[name].live:
            text = where.encode() + b"\0"
            text += b"\0" * (-len(text) % 8)
            following = len(said) + 40 + len(text)  # from the first one
            said += struct.pack("=QQiI16s", first, length, 0, following, b"linear") + text
        return said

    def _linked(self, mapped: Mapped) -> None:
        """Show what a device stands on, as its `slaves`."""
        folder = self.block / f"dm-{mapped.number}/slaves"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        used = {row[2].split()[0] for row in [*mapped.live, *(mapped.loaded or [])]}
        for path in self.block.glob("*/dev"):
            if path.read_text().strip() in used:
                (folder / path.parent.name).touch()
