"""Disks: what firmware and the kernel will find on them, read back with other tools."""

import json
import struct
import subprocess
from pathlib import Path

import pytest

from fleetfoot.errors import FleetfootError
from fleetfoot.images import disk, grub

MIB = 1 << 20


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "etc").mkdir(parents=True)
    (root / "etc/hostname").write_text("here\n")
    return root


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def test_the_file_system_holds_the_tree_and_stays_sparse(tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "disk.raw"
    disk.ext4(tree, target, mebibytes=64, key="k")
    assert target.stat().st_size == 64 * MIB
    assert target.stat().st_blocks * 512 < 8 * MIB
    assert run("debugfs", "-R", "cat /etc/hostname", str(target)) == "here\n"


def test_a_split_disk_has_a_packed_usr_and_a_root_without_end(tree: Path, tmp_path: Path) -> None:
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "usr/bin/big").write_bytes(b"again " * MIB)
    (tree / "usr/bin/plain").write_bytes(b"again " * (MIB // 6))
    target, work = tmp_path / "disk.raw", tmp_path / "work"
    work.mkdir()
    disk.split(tree, target, work=work, mebibytes=64, plain=["^bin/plain$"], key="k")
    content = target.read_bytes()
    first, second = (
        struct.unpack_from("<II", content, offset) for offset in (446 + 8, 446 + 16 + 8)
    )
    assert content[510:512] == b"\x55\xaa"
    assert first[0] * 512 == MIB
    assert MIB < first[1] * 512 < 2 * MIB  # six times that unpacked
    assert sum(second) == 0xFFFFFFFF
    (magic,) = struct.unpack_from("<I", content, MIB + 1024)
    assert magic == 0xE0F5E1E2
    inside = f"{target}?offset={second[0] * 512}"
    assert run("debugfs", "-R", "cat /etc/hostname", inside) == "here\n"
    assert "upper" in run("debugfs", "-R", "ls /var/lib/usr", inside)


def test_the_same_key_gives_the_same_identifiers_and_another_gives_others() -> None:
    assert disk.identifier("k", "root") == disk.identifier("k", "root")
    assert disk.identifier("k", "root") != disk.identifier("l", "root")
    assert disk.identifier("k", "root") != disk.identifier("k", "disk")


def test_the_partition_table_has_a_loader_and_a_root_that_can_grow(
    tree: Path, tmp_path: Path
) -> None:
    target = tmp_path / "disk.raw"
    with target.open("wb") as stream:
        stream.truncate(64 * MIB)
    grub._partition(target, "k")
    disk.ext4(tree, target, mebibytes=59, key="k", offset=4 * MIB)
    table = json.loads(run("sfdisk", "--json", str(target)))["partitiontable"]
    loader, root = sorted(table["partitions"], key=lambda part: part["start"])
    assert loader["type"] == grub._BIOS_BOOT
    assert root["start"] * 512 == 4 * MIB
    assert root["uuid"].lower() == disk.identifier("k", "root partition")
    assert target.stat().st_size == 64 * MIB
    inside = f"{target}?offset={4 * MIB}"
    assert run("debugfs", "-R", "cat /etc/hostname", inside) == "here\n"


def test_the_loader_leaves_the_partition_table_alone_and_finds_its_second_part(
    tmp_path: Path,
) -> None:
    target = tmp_path / "disk.raw"
    with target.open("wb") as stream:
        stream.truncate(16 * MIB)
    grub._partition(target, "k")
    before = target.read_bytes()[:512]
    core = bytes(range(256)) * 10
    grub._embed(target, b"\xeb" * 512, core)
    content = target.read_bytes()
    assert content[0x1B8:512] == before[0x1B8:]
    (start,) = struct.unpack_from("<Q", content, 0x5C)
    assert start * 512 == MIB
    rest, length, segment = struct.unpack_from("<QHH", content, MIB + 512 - 12)
    assert (rest, length, segment) == (start + 1, 4, 0x820)
    assert content[MIB + 512 : MIB + len(core)] == core[512:]
    table = json.loads(run("sfdisk", "--json", str(target)))["partitiontable"]
    assert len(table["partitions"]) == 2


def test_a_second_part_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FleetfootError, match="too small"):
        grub._embed(tmp_path / "disk.raw", b"\0" * 512, b"\0" * (4 * MIB))


def test_a_tree_without_an_initrd_is_refused(tree: Path, tmp_path: Path) -> None:
    (tree / "boot").mkdir()
    (tree / "boot/vmlinuz-6.12").touch()
    with pytest.raises(FleetfootError, match=r"initrd\.img-6\.12"):
        grub.write(tree, tmp_path / "disk.raw", mebibytes=64, cmdline="", key="k")
