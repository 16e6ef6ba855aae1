"""From a finished tree to a disk."""

from __future__ import annotations

import shutil
import struct
import uuid
from typing import TYPE_CHECKING

from fleetfoot.shell import run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["ext4", "identifier", "split"]

_SECTOR = 512
_MIB = 1 << 20
_TABLE, _SIGNATURE = 446, b"\x55\xaa"  # of a master boot record
_LINUX = 0x83
_NO_CHS = b"\xfe\xff\xff"
_WHOLE = 0xFFFFFFFF
# Clusters of 64 KiB: larger ones pack better, smaller ones read less around what is asked for.
_PACKED = ("-zlz4hc,9", "-C65536")
_EPOCH = "1577836800"  # one fixed moment for all files that a build makes


def identifier(key: str, purpose: str) -> str:
    """Return a UUID that follows from the image's key, so that a rebuild gives the same one."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"fleetfoot {key} {purpose}"))


def ext4(tree: Path, target: Path, *, mebibytes: int, key: str, offset: int = 0) -> None:
    """Write an ext4 file system that holds `tree`; the file is sparse.

    Inode tables and journal are left unwritten: a fresh file reads as zeros, so initialising them
    in the guest (ext4lazyinit) would only make work.

    Args:
        tree: Root of the file system.
        target: The file; made unless it is there.
        mebibytes: Size of the file system in MiB.
        key: The image's key.
        offset: Where in the file it starts, in bytes.
    """
    end = offset + (mebibytes << 20)
    with target.open("ab") as stream:
        if stream.tell() < end:
            stream.truncate(end)
    extended = f"lazy_itable_init=1,lazy_journal_init=1,nodiscard,hash_seed={identifier(key, 'h')}"
    extended += f",offset={offset}" if offset else ""
    argv = ["mkfs.ext4", "-q", "-F", "-L", "root", "-m", "0", "-U", identifier(key, "root")]
    argv += ["-J", "size=16", "-E", extended, "-d", str(tree), str(target), f"{mebibytes}M"]
    run(["env", f"E2FSPROGS_FAKE_TIME={_EPOCH}", *argv], consequence="the image has no disk")


def split(
    tree: Path, target: Path, *, work: Path, mebibytes: int, plain: Sequence[str], key: str
) -> None:
    """Write a disk of two partitions: /usr packed and read-only (EROFS), the rest ext4.

    The partition table says that the second partition goes on without end; the kernel cuts it where
    the machine's disk ends, so that a larger disk needs no new table.

    Args:
        tree: Root of both; loses its /usr.
        target: The disk; a sparse file.
        work: A folder on the tree's file system.
        mebibytes: Size of the ext4 file system in MiB; it grows in the machine.
        plain: Files below /usr, as regular expressions, that stay unpacked.
        key: The image's key.
    """
    usr, packed = work / "usr", work / "usr.erofs"
    (tree / "usr").rename(usr)
    (tree / "usr").mkdir()
    for folder in ("upper", "work"):  # what a machine changes below /usr
        (tree / "var/lib/usr" / folder).mkdir(parents=True)
    _erofs(usr, packed, work=work, plain=plain, key=key)
    size = packed.stat().st_size
    start = _MIB + -(-size // _MIB) * _MIB
    with target.open("wb") as stream, packed.open("rb") as source:
        first, second = _MIB // _SECTOR, start // _SECTOR
        stream.seek(_TABLE)
        stream.write(_partition(first, size // _SECTOR))
        stream.write(_partition(second, _WHOLE - second))
        stream.seek(_SECTOR - len(_SIGNATURE))
        stream.write(_SIGNATURE)
        stream.seek(_MIB)
        shutil.copyfileobj(source, stream, _MIB)
    ext4(tree, target, mebibytes=mebibytes, key=key, offset=start)


def _partition(start: int, sectors: int) -> bytes:
    return struct.pack("<B3sB3sII", 0, _NO_CHS, _LINUX, _NO_CHS, start, sectors)


def _erofs(tree: Path, target: Path, *, work: Path, plain: Sequence[str], key: str) -> None:
    hints = work / "hints"
    hints.write_text("".join(f"0 {pattern}\n" for pattern in plain) + "65536 .*\n")
    argv = ["mkfs.erofs", "--quiet", "-T", _EPOCH, "-U", identifier(key, "usr"), *_PACKED]
    argv += [f"--compress-hints={hints}", str(target), str(tree)]
    run(argv, consequence="the image has no disk")
