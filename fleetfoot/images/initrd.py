"""A tiny initrd: busybox, the modules that find the root disk, a script of a few lines.

The generators of distributions probe hardware, run udev and a second systemd; a virtual machine
whose hardware is known needs four modules and a mount.
"""

from __future__ import annotations

import fnmatch
import lzma
import os
import stat
from pathlib import Path
from typing import IO, TYPE_CHECKING

from fleetfoot.errors import FleetfootError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["Modules", "write_cpio", "write_initrd"]

_ALIGN = 4
# Name, mode, content, device number.
Entry = tuple[str, int, bytes, int]


class Modules:
    """The kernel modules of a tree (`/usr/lib/modules/<release>`)."""

    def __init__(self, tree: Path) -> None:
        releases = sorted((tree / "usr/lib/modules").iterdir())
        if len(releases) != 1:
            raise FleetfootError(f"{tree} has {len(releases)} kernels", "one is needed")
        self.folder = releases[0]
        self.release = releases[0].name
        self._needs: dict[str, list[str]] = {}
        for line in (self.folder / "modules.dep").read_text().splitlines():
            path, _, needs = line.partition(":")
            self._needs[path] = needs.split()

    def matching(self, patterns: Iterable[str]) -> set[str]:
        """Return paths (below the release's folder) that match, with all they need.

        Raises:
            FleetfootError: A pattern matches nothing: the kernel changed under it.
        """
        found: set[str] = set()
        for pattern in patterns:
            hits = [p for p in self._needs if fnmatch.fnmatch(p, f"kernel/{pattern}.ko*")]
            if not hits:
                raise FleetfootError(
                    f"no kernel module matches {pattern}",
                    f"the image of kernel {self.release} would lack it",
                    "mend `modules` in image.toml (it may be built in now)",
                )
            for hit in hits:
                found.update((hit, *self._needs[hit]))
        return found

    def in_load_order(self, names: Sequence[str]) -> list[str]:
        """Return the paths of modules by name, each after what it needs."""
        by_name = {Path(p).name.partition(".")[0].replace("-", "_"): p for p in self._needs}
        order: list[str] = []
        for name in names:
            if name not in by_name:
                raise FleetfootError(
                    f"kernel {self.release} has no module {name}",
                    "the initrd would not find the disk",
                    "mend `initrd_modules` in image.toml (it may be built in now)",
                )
            path = by_name[name]
            # modules.dep lists the nearest need first.
            order += [p for p in (*reversed(self._needs[path]), path) if p not in order]
        return order

    def read(self, path: str) -> bytes:
        """Return a module uncompressed: a guest should not unpack at boot what a host can."""
        content = (self.folder / path).read_bytes()
        return lzma.decompress(content) if path.endswith(".xz") else content

    def keep(self, patterns: Sequence[str]) -> None:
        """Delete modules that match no pattern; store the others uncompressed."""
        kept = self.matching(patterns)
        for path in self._needs:
            file = self.folder / path
            if path in kept and path.endswith(".xz"):
                file.with_suffix("").write_bytes(self.read(path))
            if path not in kept or path.endswith(".xz"):
                file.unlink()
        for folder in sorted((self.folder / "kernel").rglob("*"), reverse=True):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def write_initrd(
    path: Path, *, init: Path, busybox: Path, modules: Modules, names: Sequence[str]
) -> None:
    """Write an uncompressed initrd: the guest reads it at memory speed."""
    order = modules.in_load_order(names)
    plain = [Path(p).name.partition(".")[0] + ".ko" for p in order]
    folders = ("bin", "dev", "modules", "root", "sys", "usr")
    entries: list[Entry] = [(name, stat.S_IFDIR | 0o755, b"", 0) for name in folders]
    entries += [
        ("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes(), 0),
        ("dev/console", stat.S_IFCHR | 0o600, b"", os.makedev(5, 1)),
        ("dev/null", stat.S_IFCHR | 0o666, b"", os.makedev(1, 3)),
        ("init", stat.S_IFREG | 0o755, init.read_bytes(), 0),
        ("modules/order", stat.S_IFREG | 0o644, "".join(f"{n}\n" for n in plain).encode(), 0),
    ]
    for name, module in zip(plain, order, strict=True):
        entries.append((f"modules/{name}", stat.S_IFREG | 0o644, modules.read(module), 0))
    with path.open("wb") as stream:
        write_cpio(stream, entries)


def write_cpio(stream: IO[bytes], entries: Iterable[Entry]) -> None:
    """Write entries (name, mode, content, device) in the kernel's newc format, reproducibly."""
    for number, (name, mode, content, device) in enumerate(_closed(entries), 1):
        encoded = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (number, mode, 0, 0, links, 0, len(content), 0, 0)
        numbers = (*fields, os.major(device), os.minor(device), len(encoded), 0)
        _padded(stream, b"070701" + b"".join(b"%08X" % n for n in numbers) + encoded)
        _padded(stream, content)


def _closed(entries: Iterable[Entry]) -> Iterator[Entry]:
    yield from entries
    yield ("TRAILER!!!", 0, b"", 0)


def _padded(stream: IO[bytes], content: bytes) -> None:
    stream.write(content + b"\0" * (-len(content) % _ALIGN))
