"""What an image is made of: `images/<name>/image.toml`, and the key of everything that goes in."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fleetfoot.errors import FleetfootError
from fleetfoot.paths import PROJECT
from fleetfoot.roles import roles_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["FORMATS", "Definition", "Layer", "content_key"]

FORMATS = {"directory": "nspawn", "split": "qemu", "grub": "qemu", "oci": "containers"}
"""What an image's disk may be, and the backend that can start it."""
_SEEDS = ("credentials", "cloud-init")
# Beside the content of a role: nothing that reaches a machine.
_NOT_CONTENT = {"README.md", "__pycache__", "molecule"}
_KEYS = {
    "cmdline",
    "command",
    "format",
    "initrd_modules",
    "layers",
    "modules",
    "plain",
    "python",
    "seed",
    "size",
    "user",
}


@dataclass(frozen=True)
class Layer:
    """A layer of a container image.

    Attributes:
        name: What it is to its users.
        paths: Files and folders below the root that are in it, as patterns of `Path.glob`.
    """

    name: str
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Definition:
    """One folder under images/.

    Attributes:
        name: The folder's name.
        folder: The folder.
        format: What the disk is (`FORMATS`).
        seed: How a machine gets its identity: systemd credentials or cloud-init.
        size: Virtual size of the writable file system in MiB; the file is sparse.
        plain: Files below /usr, as regular expressions, that stay unpacked (split).
        cmdline: Kernel command line for direct boot.
        modules: Kernel modules that stay, as patterns below `kernel/`; empty keeps all.
        initrd_modules: Modules that the initrd loads, in order; empty means there is no initrd of
            ours.
        command: What a container of the image runs (oci).
        user: `uid:gid` it runs as (oci).
        layers: Layers over the lowest, which has what none of them has (oci).
        python: File with Python packages and their hashes, as pip reads it (oci).
    """

    name: str
    folder: Path
    format: str
    seed: str = "credentials"
    size: int = 0
    plain: tuple[str, ...] = ()
    cmdline: str = ""
    modules: tuple[str, ...] = ()
    initrd_modules: tuple[str, ...] = ()
    roles: tuple[str, ...] = field(default=())
    command: tuple[str, ...] = ()
    user: str = ""
    layers: tuple[Layer, ...] = ()
    python: str = ""

    @classmethod
    def load(cls, name: str, project: Path = PROJECT) -> Definition:
        """Read `images/<name>/image.toml`.

        Raises:
            FleetfootError: There is no such image, or its file has a mistake.
        """
        folder = project / "images" / name
        path = folder / "image.toml"
        if not path.is_file():
            known = ", ".join(sorted(p.parent.name for p in folder.parent.glob("*/image.toml")))
            raise FleetfootError(f"there is no image named {name}", "", f"choose one of {known}")
        data = tomllib.loads(path.read_text())
        _check(path, data)
        playbook = project / "playbooks/bake.yml"
        return cls(
            name=name,
            folder=folder,
            format=data["format"],
            seed=data.get("seed", "credentials"),
            size=data.get("size", 0),
            plain=tuple(data.get("plain", ())),
            cmdline=" ".join(data.get("cmdline", ())),
            modules=tuple(data.get("modules", ())),
            initrd_modules=tuple(data.get("initrd_modules", ())),
            roles=tuple(roles_of(playbook, f"image_{name}")),
            command=tuple(data.get("command", ())),
            user=data.get("user", ""),
            layers=tuple(Layer(each["name"], tuple(each["paths"])) for each in data.get("layers", ())),
            python=data.get("python", ""),
        )

    @property
    def direct_boot(self) -> bool:
        """Whether a hypervisor boots the kernel itself, without a boot loader on the disk."""
        return self.format == "split"


def _check(path: Path, data: dict[str, Any]) -> None:
    wrong = [f"unknown key {key}" for key in sorted(set(data) - _KEYS)]
    if data.get("format") not in FORMATS:
        wrong.append(f"format must be one of {', '.join(FORMATS)}")
    if data.get("seed", "credentials") not in _SEEDS:
        wrong.append(f"seed must be one of {', '.join(_SEEDS)}")
    wrong += [
        f"layers[{number}] must have a name and paths, relative to the root"
        for number, each in enumerate(data.get("layers", ()))
        if set(each) != {"name", "paths"} or any(p.startswith("/") or ".." in p for p in each["paths"])
    ]
    if wrong:
        raise FleetfootError(f"{path}: {'; '.join(wrong)}", "the image cannot be built", "mend it")


def content_key(parts: Iterable[Path], base: Path) -> str:
    """Return a hash of files and folders: names below `base`, kinds, modes of programs, contents.

    A path that does not exist counts as absent, so that its appearance changes the key.
    """
    digest = hashlib.sha256()
    for part in parts:
        for path in sorted([part, *(part.rglob("*") if part.is_dir() else ())]):
            if not _NOT_CONTENT.isdisjoint((part.name, *path.relative_to(part).parts)):
                continue
            name = str(path.relative_to(base)) if path.is_relative_to(base) else path.name
            if path.is_symlink():
                digest.update(f"link {name} {path.readlink()}\n".encode())
            elif path.is_file():
                with path.open("rb") as stream:
                    content = hashlib.file_digest(stream, "sha256").hexdigest()
                runs = bool(path.stat().st_mode & 0o100)
                digest.update(f"file {name} {runs} {content}\n".encode())
            elif not path.exists():
                digest.update(f"none {name}\n".encode())
    return digest.hexdigest()[:16]
