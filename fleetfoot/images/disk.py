"""From a finished tree to a disk."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from fleetfoot.shell import run

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["erofs", "ext4", "identifier"]

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


def erofs(tree: Path, target: Path, *, key: str, compression: str = "") -> None:
    """Write a read-only EROFS that holds `tree`."""
    options = [f"-z{compression}"] if compression else []
    argv = ["mkfs.erofs", "--quiet", "-T", _EPOCH, "-U", identifier(key, "root"), *options]
    run([*argv, str(target), str(tree)], consequence="the image has no disk")
