"""The root folder of an image: installed by mkosi, slimmed, free of secrets and of chance."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import subprocess
import threading
from typing import TYPE_CHECKING

from fleetfoot.errors import FleetfootError
from fleetfoot.images import apt
from fleetfoot.images.definition import content_key
from fleetfoot.locks import alone
from fleetfoot.shell import FAMILY, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from fleetfoot.images.definition import Definition
    from fleetfoot.images.initrd import Modules

__all__ = ["check_no_secrets", "install", "scrub", "secrets_in", "slim"]

_SUITE = "trixie"
_EMPTY = (
    "run", "tmp", "var/tmp", "var/cache", "var/log", "var/lib/apt/lists", "var/lib/systemd/catalog",
)  # fmt: skip
# Made by package scripts, different in every build, and a machine's own business.
_IDENTITY = (
    "etc/ssh/ssh_host_*",
    "etc/hostname",
    "root/.ssh",
    "var/lib/dbus/machine-id",
    "var/lib/systemd/random-seed",
    "var/lib/systemd/credential.secret",
)
_PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\n[A-Za-z0-9+/=\n]{64}")
_LARGEST_KEY_FILE = 1 << 16
_MACHINE_ID_LENGTH = 32
_UNPACKING = "Unpacking "  # dpkg's word, one line a package
_PROGRESS_EVERY = 50
_LEAST_ROOM, _LOOK_SECONDS = 32 << 20, 0.5


def install(
    definition: Definition, target: Path, *, home: Path, work: Path, progress: Callable[[str], None]
) -> None:
    """Put the distribution's packages into `target`, from the cache when nothing changed.

    The tree before the roles is kept for each definition: a changed role costs no installation.
    """
    key = content_key([definition.folder], definition.folder)
    kept = home / "trees" / f"{definition.name}-{key}"
    if not kept.exists():
        # One image at a time: apt's folder of packages is one for all, and is not locked.
        others = f"{definition.name}: waiting while another image's packages are installed"
        with alone(home / "packages.lock", lambda: progress(others)):
            progress(f"{definition.name}: installing packages")
            _mkosi(definition, work, home, progress)
        kept.parent.mkdir(parents=True, exist_ok=True)
        for old in kept.parent.glob(f"{definition.name}-*"):
            shutil.rmtree(old)
        (work / "mkosi.out/tree").rename(kept)
    run(["cp", "--archive", "--reflink=auto", str(kept), str(target)])


def _mkosi(
    definition: Definition, work: Path, home: Path, progress: Callable[[str], None]
) -> None:
    packages = home / "packages"
    packages.mkdir(exist_ok=True)
    (work / "mkosi.out").mkdir()
    manager = work / "apt"
    apt.write_package_manager_tree(manager, suite=_SUITE)
    version = run(["mkosi", "--version"], consequence="no image can be built").split()[1]
    tree_option = "sandbox" if int(version.partition(".")[0]) >= 25 else "package-manager"  # noqa: PLR2004
    argv = [*FAMILY, "mkosi", f"--directory={definition.folder}", f"--{tree_option}-tree={manager}"]
    argv += [f"--output-dir={work / 'mkosi.out'}", f"--workspace-dir={work}"]
    argv += [f"--package-cache-dir={packages}", "--incremental=no", "build"]
    said: list[str] = []
    with (
        subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as building,
        _room_watched(home, building) as full,
    ):
        count = 0
        for line in building.stdout or ():
            said.append(line)
            count += line.startswith(_UNPACKING)
            if line.startswith(_UNPACKING) and count % _PROGRESS_EVERY == 0:
                progress(f"{definition.name}: {count} packages unpacked")
    if full:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {full[0] >> 20} MiB free")
    if building.returncode:
        raise FleetfootError(
            f"mkosi could not install {definition.name}:\n{''.join(said).strip()[-3000:]}",
            "the image is not built",
            "mend the cause (archive unreachable? package renamed?) and run the command again",
        )


@contextlib.contextmanager
def _room_watched(folder: Path, process: subprocess.Popen[str]) -> Iterator[list[int]]:
    """End `process` when the disk is as good as full: apt would wait for ever where it is quite so.

    Yields:
        Empty, or the bytes that were free when it was ended.
    """
    full: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_LOOK_SECONDS):
            if (free := shutil.disk_usage(folder).free) < _LEAST_ROOM:
                full.append(free)
                process.kill()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield full
    finally:
        ended.set()
        watcher.join()


def slim(root: Path, modules: Modules, patterns: Sequence[str]) -> None:
    """Drop what only the build needed, and kernel modules that are not wanted."""
    if patterns:
        modules.keep(patterns)
        run(["depmod", "--basedir", str(root), modules.release])
    for name in ("boot", "usr/bin/busybox"):
        _remove(root / name)
    (root / "boot").mkdir()
    for link in ("vmlinuz", "vmlinuz.old", "initrd.img", "initrd.img.old"):
        (root / link).unlink(missing_ok=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def scrub(root: Path) -> None:
    """Remove what belongs to one machine, or differs between two builds of the same content."""
    for name in _EMPTY:
        folder = root / name
        if folder.is_dir() and not folder.is_symlink():
            for entry in folder.iterdir():
                _remove(entry)
    for pattern in _IDENTITY:
        for path in root.glob(pattern):
            _remove(path)
    # Empty, not absent: an absent one means a first boot, which would apply presets to all units.
    (root / "etc/machine-id").write_text("")


def secrets_in(root: Path) -> Iterator[str]:
    """Name every file that is or holds a secret, or the identity of one machine."""
    machine_id = root / "etc/machine-id"
    if machine_id.exists() and len(machine_id.read_text().strip()) == _MACHINE_ID_LENGTH:
        yield "etc/machine-id"
    for pattern in _IDENTITY:
        yield from (str(path.relative_to(root)) for path in root.glob(pattern))
    for path in root.rglob("*"):
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _LARGEST_KEY_FILE:
            continue
        if _PRIVATE_KEY.search(path.read_bytes()):
            yield str(path.relative_to(root))
    shadow = root / "etc/shadow"
    for line in shadow.read_text().splitlines() if shadow.exists() else ():
        if line.split(":")[1].startswith("$"):
            yield f"etc/shadow: {line.split(':')[0]}"


def check_no_secrets(root: Path) -> None:
    """Refuse a tree that holds a secret.

    Raises:
        FleetfootError: With the names of the files.
    """
    if found := sorted(set(secrets_in(root))):
        raise FleetfootError(
            f"the image would hold secrets: {', '.join(found)}",
            "every machine of every stack would share them, so it is not built",
            "let the role that wrote them wait for the machine (late-bound identity)",
        )
