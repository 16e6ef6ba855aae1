"""The lazy form of an image against the ordinary unpacked tree: bytes and metadata, both ways.

The ordinary tree is umoci's, which shares no code with ours; the lazy one is what the kernel shows
of the sector images under overlayfs. It runs as a program of its own, in its own mount namespace:
whatever happens to it, no mount is left.
"""

from __future__ import annotations

import itertools
import json
import os
import stat
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fleetfoot.shell import FAMILY, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["differences"]

_PIECE = 1 << 20
# What overlayfs keeps for itself; a mounted tree does not show it, a layer's own folder would.
_OVERLAY = "trusted.overlay."


@dataclass(frozen=True)
class _Entry:
    kind: str
    mode: str
    owner: str
    size: int
    mtime: int
    device: str
    target: str
    xattrs: tuple[tuple[str, bytes], ...]


def differences(layers: Sequence[Path], layout: Path, tag: str, work: Path) -> Iterator[str]:
    """Compare; yield a line for each difference.

    Args:
        layers: Sector images, the lowest first.
        layout: OCI layout with the ordinary image.
        tag: Its tag there.
        work: Empty folder with room for the unpacked image.

    Raises:
        FleetfootError: The image cannot be unpacked, or this kernel cannot mount sector images.
    """
    begun = time.time_ns()
    run(["umoci", "raw", "unpack", "--image", f"{layout}:{tag}", str(work / "ordinary")])
    argv = [*FAMILY, "unshare", "--mount", "--propagation=private", "--"]
    argv += [sys.executable, "-m", __name__, str(work), str(begun), *map(str, layers)]
    yield from json.loads(run(argv, consequence="the image is not compared"))


def _compare(work: Path, begun: int, layers: Sequence[Path]) -> Iterator[str]:
    lazy = work / "lazy"
    for number, layer in enumerate(layers):
        (work / str(number)).mkdir()
        run(["mount", "-t", "erofs", "-o", "ro", str(layer), str(work / str(number))])
    lazy.mkdir()
    top_first = ":".join(str(number) for number in reversed(range(len(layers))))
    if len(layers) > 1:
        os.chdir(work)  # names are short so: options have one page
        run(["mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={top_first}", "lazy"])
    else:
        run(["mount", "--bind", str(work / "0"), str(lazy)])
    ordinary = work / "ordinary"
    expected, found = _walk(ordinary), _walk(lazy)
    links = _links(ordinary), _links(lazy)
    for path in sorted(expected.keys() | found.keys()):
        mine, other = expected.get(path), found.get(path)
        if mine is None or other is None:
            yield f"{path}: only in the {'lazy' if mine is None else 'ordinary'} tree"
            continue
        for name, value in vars(mine).items():
            # A folder that no layer names has the time of its unpacking: no property of it.
            made = name == "mtime" and mine.kind == "folder" and value >= begun
            if value != getattr(other, name) and not made:
                yield f"{path}: {name} is {getattr(other, name)!r}, not {value!r}"
        if mine.kind == other.kind == "file" and not _same(ordinary / path, lazy / path):
            yield f"{path}: the content differs"
        if (together := links[0].get(path)) != links[1].get(path):
            yield f"{path}: is one file with {links[1].get(path)}, not with {together}"


def _walk(root: Path) -> dict[str, _Entry]:
    # The root itself is the runtime's: it makes one for each container.
    return {
        os.path.relpath(path, root): _entry(path)
        for folder, folders, files in os.walk(root)
        for path in (Path(folder, name) for name in itertools.chain(folders, files))
    }


def _entry(path: Path) -> _Entry:
    found = path.lstat()
    kind, mode = found.st_mode, stat.S_IMODE(found.st_mode)
    named = {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "folder",
        stat.S_IFLNK: "link",
        stat.S_IFCHR: "character device",
        stat.S_IFBLK: "block device",
        stat.S_IFIFO: "pipe",
        stat.S_IFSOCK: "socket",
    }
    is_device = stat.S_ISCHR(kind) or stat.S_ISBLK(kind)
    return _Entry(
        kind=named[stat.S_IFMT(kind)],
        mode=oct(mode),
        owner=f"{found.st_uid}:{found.st_gid}",
        size=0 if stat.S_ISDIR(kind) else found.st_size,
        mtime=found.st_mtime_ns,
        device=f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}" if is_device else "",
        target=str(path.readlink()) if stat.S_ISLNK(kind) else "",
        xattrs=tuple(
            (name, os.getxattr(path, name, follow_symlinks=False))
            for name in sorted(os.listxattr(path, follow_symlinks=False))
            if not name.startswith(_OVERLAY)
        ),
    )


def _links(root: Path) -> dict[str, str]:
    """Return, for each file with several names, all of them."""
    names: dict[tuple[int, int], list[str]] = {}
    for folder, _, files in os.walk(root):
        for path in (Path(folder, name) for name in files):
            found = path.lstat()
            if found.st_nlink > 1 and not stat.S_ISLNK(found.st_mode):
                key = (found.st_dev, found.st_ino)
                names.setdefault(key, []).append(os.path.relpath(path, root))
    return {path: ", ".join(sorted(group)) for group in names.values() for path in group}


def _same(one: Path, other: Path) -> bool:
    with one.open("rb") as left, other.open("rb") as right:
        while (piece := left.read(_PIECE)) == right.read(_PIECE):
            if not piece:
                return True
    return False


if __name__ == "__main__":
    folder, since, *sector_images = sys.argv[1:]
    told = list(_compare(Path(folder), int(since), [Path(each) for each in sector_images]))
    print(json.dumps(told))
