"""A layer's archive, rewritten so that every reader of archives understands it the same way.

`mkfs.erofs --tar` (1.8) drops what sparse files hold, reads fractions of seconds as nanoseconds,
and makes folders that an archive leaves out open to everybody. So each layer is written anew, one
entry at a time: sparse files in full, times with nine digits, missing folders as containerd would
make them (pkg/archive/tar.go of containerd 2.4), and nothing outside the root.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from fleetfoot.errors import FleetfootError
from fleetfoot.lazyfs.table import LARGEST

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["OPAQUE", "WHITEOUT", "Directory", "Rewriter", "Tree"]

WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"
_XATTR = "SCHILY.xattr."
# Attributes that overlayfs obeys: what an archive says of them is dropped, as by containerd.
_ADMIN = "trusted."
_LINKS = 255  # symbolic links that are followed on the way to one entry, as the kernel does
_LATEST = (1 << 63) // 10**9  # seconds; later times become the epoch, as for containerd
_PIECE = 1 << 20
_LARGEST_DEVICE = 0o7777777  # what an archive has room for
# Subclasses of HeaderError that typeshed does not have: a block of zeros, and no block.
_ENDS = {"EOFHeaderError", "EmptyHeaderError"}
_MODE = 0o7777


@dataclass(frozen=True)
class Directory:
    """What a folder that an archive leaves out takes over from the layers below.

    Attributes:
        mode: Permission bits.
        uid: Owner.
        gid: Group.
        mtime: Time of modification, seconds with nine digits of fraction.
        xattrs: Extended attributes.
    """

    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: str = "0"
    xattrs: tuple[tuple[str, str], ...] = ()


@dataclass
class Tree:
    """What the layers so far have at each path, as far as later layers must know.

    Attributes:
        folders: By path; None where there is something else, or where it was removed.
    """

    folders: dict[str, Directory | None] = field(default_factory=dict)

    def add(self, above: Mapping[str, Directory | None]) -> None:
        """Put a layer's entries over those of the layers so far."""
        self.folders.update(above)


class Rewriter:
    """Writes one layer's archive anew.

    Args:
        below: What the layers below have, by path.
        largest: Most bytes that may be written.

    Attributes:
        entries: What the layer has, by path: its folders, None for all else that hides a folder.
        implied: Folders that the archive left out, and what they were made like.
    """

    def __init__(self, below: Mapping[str, Directory | None], largest: int = LARGEST) -> None:
        self._below, self._left = below, largest
        self._links: dict[str, str] = {}
        self._files: dict[str, Directory] = {}
        self.entries: dict[str, Directory | None] = {}
        self.implied: dict[str, Directory] = {}

    def write(self, source: IO[bytes], put: Callable[[bytes], object]) -> None:
        """Write the archive anew.

        Args:
            source: The layer, unpacked, read to its end.
            put: Takes what is written, piece by piece.

        Raises:
            FleetfootError: The layer is no archive, or has what an image cannot have.
        """
        put = self._bounded(put)
        put(_entry("./", tarfile.DIRTYPE, Directory()))
        ended, end = _Ended(source), 0
        stream: Any = ended  # all that tarfile calls of a stream
        try:
            with tarfile.open(
                fileobj=stream,
                mode="r|",
                tarinfo=_Strict,
                encoding="utf-8",
                pax_headers=_Ignored(),
            ) as archive:
                while (member := archive.next()) is not None:
                    self._one(archive, member, put)
                    is_plain = member.isreg() and not member.issparse()
                    end = member.offset_data + (member.size if is_plain else 0)
                    vars(archive)["members"] = []  # it would keep all of them
        except (tarfile.TarError, EOFError) as error:
            raise _refused(str(error)) from error
        if end > ended.length:
            raise _refused("its archive ends within a file")
        put(bytes(2 * tarfile.BLOCKSIZE))
        while source.read(_PIECE):  # what stands behind the end belongs to the layer's digest, too
            pass

    def _bounded(self, put: Callable[[bytes], object]) -> Callable[[bytes], object]:
        """Refuse an archive of some bytes that unpacks to more than there is room for."""

        def bounded(piece: bytes) -> None:
            self._left -= len(piece)
            if self._left < 0:
                raise _refused("it unpacks to more than there is room for")
            put(piece)

        return bounded

    def _one(
        self, archive: tarfile.TarFile, member: tarfile.TarInfo, put: Callable[[bytes], object]
    ) -> None:
        parts = _parts(member.name)
        if not parts:
            return  # the root is what the runtime makes it
        parent = self._resolved(parts[:-1])
        path = "/".join((*parent, parts[-1]))
        self._make(parent, put)
        base = parts[-1]
        kept = _kept(member)
        if base == OPAQUE:
            put(_entry(path, tarfile.REGTYPE, kept))
            return
        if base.startswith(WHITEOUT):
            hidden = base.removeprefix(WHITEOUT)
            if hidden in {"", ".", ".."}:
                raise _refused(f"{path!r} would remove what is no entry")
            self._record("/".join((*parent, hidden)), None)
            put(_entry(path, tarfile.REGTYPE, kept))
            return
        self._write_entry(archive, member, path, kept, put)

    def _write_entry(
        self,
        archive: tarfile.TarFile,
        member: tarfile.TarInfo,
        path: str,
        kept: Directory,
        put: Callable[[bytes], object],
    ) -> None:
        if member.isdir():
            self._record(path, kept)
            put(_entry(path, tarfile.DIRTYPE, kept))
        elif member.isreg():  # sparse ones, too
            self._record(path, None)
            self._files[path] = kept
            put(_entry(path, tarfile.REGTYPE, kept, size=member.size))
            _copy(archive, member, put)
        elif member.issym():
            self._record(path, None)
            self._links[path] = member.linkname
            # Whatever an archive says of its mode: file systems do not keep another.
            put(_entry(path, tarfile.SYMTYPE, kept, mode=0o777, linkname=member.linkname))
        elif member.islnk():
            named = _parts(member.linkname)
            target = "/".join((*self._resolved(named[:-1]), *named[-1:]))
            self._record(path, None)
            self._same(path, kept, target)
            put(_entry(path, tarfile.LNKTYPE, kept, linkname=target))
        elif member.isdev():
            self._record(path, None)
            numbers = {"devmajor": member.devmajor, "devminor": member.devminor}
            put(_entry(path, member.type, kept, **({} if member.isfifo() else numbers)))
        else:
            raise _refused(f"{path!r} is of a type ({member.type!r}) that images do not have")

    def _record(self, path: str, folder: Directory | None) -> None:
        self._links.pop(path, None)
        self.entries[path] = folder

    def _same(self, path: str, kept: Directory, target: str) -> None:
        """Refuse another name of a file that changes the file: `mkfs.erofs` would not see it."""
        first = self._files.get(target)
        if first is None:
            return
        self._files[path] = first
        known = (first.mode, first.uid, first.gid, first.mtime)
        if (kept.mode, kept.uid, kept.gid, kept.mtime) != known or not set(kept.xattrs) <= set(
            first.xattrs
        ):
            raise _refused(f"{path!r} and {target!r} are one file with two owners, modes or times")

    def _make(self, parent: list[str], put: Callable[[bytes], object]) -> None:
        for length in range(1, len(parent) + 1):
            path = "/".join(parent[:length])
            if self.entries.get(path) is None:
                if path in self.entries:
                    raise _refused(f"{path!r} is no folder, and {'/'.join(parent)!r} is below it")
                made = self._below.get(path) or Directory()
                self.entries[path] = self.implied[path] = made
                put(_entry(path, tarfile.DIRTYPE, made))

    def _resolved(self, parts: list[str]) -> list[str]:
        """Follow this layer's own symbolic links, staying below the root."""
        left, done, followed = list(parts), list[str](), 0
        while left:
            name = left.pop(0)
            if name == "..":
                done = done[:-1]
                continue
            done.append(name)
            target = self._links.get("/".join(done))
            if target is None:
                continue
            followed += 1
            if followed > _LINKS:
                raise _refused(f"{'/'.join(parts)!r} leads through too many symbolic links")
            done = [] if target.startswith("/") else done[:-1]
            left = [part for part in target.split("/") if part not in {"", "."}] + left
        return done


class _Ended:
    """An archive with an end: some programs (umoci 0.4) leave it out, and Go's reader allows it."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source, self._end = source, b""
        self._is_over = False
        self.length = 0

    def read(self, size: int) -> bytes:
        data = self._source.read(size)
        self.length += len(data)
        if not data and not self._is_over:
            self._is_over = True
            self._end = bytes(-self.length % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)
        if not data:
            data, self._end = self._end[:size], self._end[size:]
        return data


class _Ignored(dict[str, str]):
    """Settings of an archive for all of its entries: containerd ignores them, too."""

    def __setitem__(self, _key: str, _value: str) -> None:
        pass


class _Strict(tarfile.TarInfo):
    """An entry; one that cannot be read is an error, and not the archive's end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _Strict:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            if type(error).__name__ in _ENDS:
                raise
            raise _refused(f"its archive is damaged ({error})") from error


def _parts(name: str) -> list[str]:
    """Return the parts of a name below the root; `..` never leads out of it."""
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in {"", "."}:
            parts.append(part)
    return parts


def _kept(member: tarfile.TarInfo) -> Directory:
    xattrs = {
        key.removeprefix(_XATTR): value
        for key, value in member.pax_headers.items()
        if key.startswith(_XATTR) and not key.startswith(f"{_XATTR}{_ADMIN}")
    }
    # Not what tarfile made of it, which may be infinite.
    mtime = member.pax_headers.get("mtime") or str(int(member.mtime))
    owner = (member.uid, member.gid)
    return Directory(member.mode & _MODE, *owner, _time(mtime), tuple(sorted(xattrs.items())))


def _time(text: str) -> str:
    """Return a time with nine digits of fraction; the epoch for what cannot be."""
    whole, _, fraction = text.partition(".")
    if not whole.isdecimal() or int(whole) > _LATEST:
        return "0"
    nanoseconds = f"{fraction:0<9}"[:9]
    return whole if not nanoseconds.strip("0") else f"{whole}.{nanoseconds}"


def _entry(path: str, kind: bytes, like: Directory, **more: Any) -> bytes:
    info = tarfile.TarInfo(path)
    info.type, info.mode, info.uid, info.gid = kind, like.mode, like.uid, like.gid
    for key, value in more.items():
        setattr(info, key, value)
    if max(info.devmajor, info.devminor) > _LARGEST_DEVICE:
        raise _refused(f"{path!r} is a device with the numbers {info.devmajor}, {info.devminor}")
    info.pax_headers = {_XATTR + key: value for key, value in like.xattrs}
    whole, _, fraction = like.mtime.partition(".")
    info.mtime = int(whole)
    if fraction:
        info.pax_headers["mtime"] = like.mtime
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _copy(
    archive: tarfile.TarFile, member: tarfile.TarInfo, put: Callable[[bytes], object]
) -> None:
    content = archive.extractfile(member)
    left = member.size
    while left and content is not None:
        piece = content.read(min(left, _PIECE))
        if not piece:
            raise _refused(f"it ends within {member.name!r}")
        left -= len(piece)
        put(piece)
    put(bytes(-member.size % tarfile.BLOCKSIZE))


def _refused(why: str) -> FleetfootError:
    return FleetfootError(
        f"a layer cannot be converted: {why}",
        "the image has no lazy form; nodes pull it as ever",
        "build the image again",
    )
