"""Build a machine image once per content."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fleetfoot.errors import FleetfootError
from fleetfoot.images import disk, grub, initrd, kernel, oci, python, sbom, tree
from fleetfoot.images.bake import bake
from fleetfoot.images.definition import Definition, content_key
from fleetfoot.locks import alone
from fleetfoot.machines.accel import BESIDE_DISK
from fleetfoot.paths import PROJECT, size_of
from fleetfoot.roles import content_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Image", "build", "key_of"]

_ROOM = 3 << 30  # bytes: a tree, its copy and a disk
_NO_SPACE = "No space left on device"


@dataclass(frozen=True)
class Image:
    """A built image.

    Attributes:
        name: Image name.
        path: Disk image, or the tree of an nspawn image.
        kernel: Kernel for direct boot; empty when the disk has a boot loader.
        initrd: Initial RAM disk for direct boot; may be empty.
        cmdline: Kernel command line for direct boot.
        digest: Content key.
        manifest: Package list.
        seed: How a machine gets its identity: `credentials` or `cloud-init`.
    """

    name: str
    path: Path
    kernel: str
    initrd: str
    cmdline: str
    digest: str
    manifest: Path
    seed: str

    @property
    def sbom(self) -> Path:
        """The SPDX document."""
        return self.manifest.with_name("sbom.spdx.json")


def build(
    name: str, *, cache: Path, artifacts: Path, progress: Callable[[str], None] = print
) -> Image:
    """Build an image, or find it in the cache.

    A build is made in a folder of its own and renamed when it is whole: one that is killed, or that
    runs out of disk, leaves no image. Builds of one image wait for each other.

    Args:
        name: A folder under images/.
        cache: Where images are kept, `<cache>/images/<name>-<key>/`.
        artifacts: Folder of the built node software.
        progress: Takes one line at a time for a person to follow.

    Raises:
        FleetfootError: The disk is full, the definition has a mistake, or a step failed.
    """
    definition = Definition.load(name)
    key = key_of(definition, artifacts)
    home = cache / "images"
    final = home / f"{name}-{key}"
    if not final.exists():
        home.mkdir(parents=True, exist_ok=True)
        waiting = f"{name}: waiting for another build of this image"
        lock = alone(home / f"{name}.lock", lambda: progress(waiting))
        with lock, _disk_full_told(home):
            if not final.exists():
                _build(definition, key, final, artifacts, progress)
    return _image(definition, key, final)


def key_of(definition: Definition, artifacts: Path) -> str:
    """Return the key of everything that goes into an image."""
    parts = [definition.folder, *content_of(PROJECT, definition.roles), Path(__file__).parent]
    if definition.roles:
        parts += [PROJECT / "playbooks/bake.yml", PROJECT / "playbooks/group_vars", artifacts]
    return content_key(parts, PROJECT)


def _build(
    definition: Definition, key: str, final: Path, artifacts: Path, progress: Callable[[str], None]
) -> None:
    home, name = final.parent, definition.name
    for left in home.glob(f".{name}-*"):  # of builds that were killed: the lock is ours
        shutil.rmtree(left)
    if (free := shutil.disk_usage(home).free) < _ROOM:
        raise OSError(errno.ENOSPC, f"{_NO_SPACE}: {free >> 20} MiB free, {_ROOM >> 20} needed")
    work = home / f".{name}-{os.getpid()}"
    out = work / "out"
    out.mkdir(parents=True)
    try:
        root = work / "tree"
        tree.install(definition, root, home=home, work=work, progress=progress)
        if definition.python:
            progress(f"{name}: installing Python packages")
            python.install(root, definition.folder / definition.python)
        bake(definition, root, work=work, artifacts=artifacts, progress=progress)
        found = sbom.components(root)
        (out / "manifest.txt").write_text(sbom.manifest(found))
        (out / "sbom.spdx.json").write_text(sbom.spdx(name, key, found))
        progress(f"{name}: writing the {definition.format} image")
        _write(definition, key, root, out)
        (out / "image.json").write_text(json.dumps(asdict(definition), default=str, indent=1))
        out.rename(final)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    progress(f"{name}: built, {size_of(final) >> 20} MiB")


def _write(definition: Definition, key: str, root: Path, out: Path) -> None:
    if definition.direct_boot:
        modules = initrd.Modules(root)
        kernel.extract(next((root / "boot").glob("vmlinuz-*")), out / "vmlinux")
        initrd.write_initrd(
            out / "initrd.cpio",
            init=definition.folder / "initrd/init",
            busybox=root / "usr/bin/busybox",
            modules=modules,
            names=definition.initrd_modules,
        )
        tree.slim(root, modules, definition.modules)
    tree.scrub(root)
    tree.check_no_secrets(root)
    if definition.format == "split":
        size, plain = definition.size, definition.plain
        target, work = out / "disk.raw", out.parent
        disk.split(root, target, work=work, mebibytes=size, plain=plain, key=key)
    elif definition.format == "grub":
        size, cmdline = definition.size, definition.cmdline
        shutil.copyfile(next((root / "boot").glob("vmlinuz-*")), out / BESIDE_DISK)
        grub.write(root, out / "disk.raw", mebibytes=size, cmdline=cmdline, key=key)
    elif definition.format == "oci":
        command, user = definition.command, definition.user
        trees = oci.divided(root, out.parent / "layers", definition.layers)
        oci.write(trees, out / "oci", command=command, user=user)
    else:
        root.rename(out / "tree")


def _image(definition: Definition, key: str, folder: Path) -> Image:
    direct = definition.direct_boot
    return Image(
        name=definition.name,
        path=folder / {"directory": "tree", "oci": "oci"}.get(definition.format, "disk.raw"),
        kernel=str(folder / "vmlinux") if direct else "",
        initrd=str(folder / "initrd.cpio") if direct else "",
        cmdline=definition.cmdline if direct else "",
        digest=key,
        manifest=folder / "manifest.txt",
        seed=definition.seed,
    )


@contextlib.contextmanager
def _disk_full_told(home: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, FleetfootError) as error:
        if getattr(error, "errno", None) != errno.ENOSPC and _NO_SPACE not in str(error):
            raise
        raise FleetfootError(
            f"the disk that holds {home} is full ({error})",
            "the image is not built; nothing of it was left behind",
            f"free at least {_ROOM >> 30} GiB, or point FLEETFOOT_CACHE to another disk",
        ) from error
