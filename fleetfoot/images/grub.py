"""A disk with a boot loader, as Debian's cloud images have it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fleetfoot.errors import FleetfootError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["write"]


def write(root: Path, target: Path, *, mebibytes: int, key: str) -> None:
    """Write a GPT disk with GRUB and an ext4 root."""
    raise FleetfootError(f"no boot loader yet: {root} {target} {mebibytes} {key}")
