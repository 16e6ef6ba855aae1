"""A disk with a boot loader, as Debian's cloud images have it: GPT, GRUB for BIOS, ext4 root.

GRUB's two parts are put in place by what their sources say (grub-core/boot/i386/pc/boot.S and
diskboot.S): `grub-bios-setup` would do the same, but wants a block device to look at.
"""

from __future__ import annotations

import shutil
import struct
from typing import TYPE_CHECKING

from fleetfoot.errors import FleetfootError
from fleetfoot.images import disk
from fleetfoot.shell import run

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["write"]

_SECTOR = 512
_MIB = 1 << 20
# MiB from the start of the disk. The root is last, so that it can grow.
_LOADER_START, _LOADER_SIZE, _ROOT_START = 1, 3, 4
_BIOS_BOOT = "21686148-6449-6E6F-744E-656564454649"
_LINUX_ROOT_X86_64 = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
_CODE_END = 0x1B8  # of boot.img: behind it are the disk's signature and partition table
_KERNEL_SECTOR = 0x5C  # in boot.img: where the second part starts
_DRIVE_CHECK = 0x66  # in boot.img: a jump that floppies need and disks must not take
_NOPS = b"\x90\x90"
_BLOCK_LIST = _SECTOR - 12  # in the second part's first sector: start, length, segment of the rest
_SEGMENT = 0x820
_MODULES = "usr/lib/grub/i386-pc"
_BUILT_IN = ("biosdisk", "part_gpt", "ext2", "search_fs_uuid")


def write(root: Path, target: Path, *, mebibytes: int, cmdline: str, key: str) -> None:
    """Write a GPT disk whose boot loader starts the tree's kernel.

    Args:
        root: The tree; /boot/grub and /etc/fstab are written into it.
        target: The disk, a sparse file.
        mebibytes: Size of the disk in MiB.
        cmdline: Kernel command line, without `root=`.
        key: The image's key, from which all identifiers follow.
    """
    _configure(root, cmdline, key)
    core = _second_part(root, key)
    with target.open("wb") as stream:
        stream.truncate(mebibytes * _MIB)
    _partition(target, key)
    size = mebibytes - _ROOT_START - 1  # the last MiB holds the second partition table
    disk.ext4(root, target, mebibytes=size, key=key, offset=_ROOT_START * _MIB)
    _embed(target, (root / _MODULES / "boot.img").read_bytes(), core)


def _configure(root: Path, cmdline: str, key: str) -> None:
    """Write the menu and the mount of the root."""
    kernels = sorted((root / "boot").glob("vmlinuz-*"))
    if len(kernels) != 1:
        raise FleetfootError(f"{root}/boot has {len(kernels)} kernels", "one is needed")
    kernel = kernels[0].name
    initrd = kernel.replace("vmlinuz-", "initrd.img-")
    if not (root / "boot" / initrd).exists():
        raise FleetfootError(f"{root}/boot lacks {initrd}", "the image would not find its root")
    folder = root / "boot/grub"
    shutil.copytree(root / _MODULES, folder / "i386-pc", dirs_exist_ok=True)
    partition = disk.identifier(key, "root partition")
    (folder / "grub.cfg").write_text(f"""\
set timeout=0
search --no-floppy --fs-uuid --set=root {disk.identifier(key, "root")}
menuentry 'Debian GNU/Linux' {{
    insmod gzio
    linux /boot/{kernel} root=PARTUUID={partition} {cmdline}
    initrd /boot/{initrd}
}}
""")
    options = "rw,discard,errors=remount-ro,x-systemd.growfs"
    (root / "etc/fstab").write_text(f"PARTUUID={partition} / ext4 {options} 0 1\n")


def _second_part(root: Path, key: str) -> bytes:
    """Return the part of GRUB that can read the root file system, made by the tree's own tools."""
    early, core = root / "boot/grub/early.cfg", root / "boot/grub/core.img"
    early.write_text(
        f"search.fs_uuid {disk.identifier(key, 'root')} root\nset prefix=($root)/boot/grub\n"
    )
    argv = ["chroot", str(root), "grub-mkimage", "-O", "i386-pc", "-d", f"/{_MODULES}"]
    argv += ["-p", "/boot/grub", "-c", "/boot/grub/early.cfg", "-o", "/boot/grub/core.img"]
    run([*argv, *_BUILT_IN], consequence="the image has no boot loader")
    content = core.read_bytes()
    core.unlink()
    early.unlink()
    return content


def _partition(target: Path, key: str) -> None:
    script = f"""\
label: gpt
label-id: {disk.identifier(key, "disk")}
unit: sectors
14 : start={_LOADER_START}MiB, size={_LOADER_SIZE}MiB, type={_BIOS_BOOT}, \
uuid={disk.identifier(key, "loader partition")}
1 : start={_ROOT_START}MiB, type={_LINUX_ROOT_X86_64}, \
uuid={disk.identifier(key, "root partition")}
"""
    run(["sfdisk", "--quiet", str(target)], stdin=script, consequence="the image has no disk")


def _embed(target: Path, boot: bytes, core: bytes) -> None:
    """Put both parts of GRUB where the BIOS and the first part look for them."""
    if len(core) > _LOADER_SIZE * _MIB:
        raise FleetfootError(f"GRUB needs {len(core)} bytes", "its partition is too small")
    start = _LOADER_START * _MIB // _SECTOR
    first = bytearray(boot[:_CODE_END])
    struct.pack_into("<Q", first, _KERNEL_SECTOR, start)
    first[_DRIVE_CHECK : _DRIVE_CHECK + len(_NOPS)] = _NOPS
    rest = -(-len(core) // _SECTOR) - 1
    second = bytearray(core)
    struct.pack_into("<QHH", second, _BLOCK_LIST, start + 1, rest, _SEGMENT)
    with target.open("r+b") as stream:
        stream.write(first)
        stream.seek(start * _SECTOR)
        stream.write(second)
