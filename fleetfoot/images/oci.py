"""Container images from trees: an OCI layout, made by umoci, a layer for each tree."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from fleetfoot.errors import FleetfootError
from fleetfoot.shell import run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fleetfoot.images.definition import Layer

__all__ = ["TAG", "divided", "write"]

TAG = "image"
_EPOCH = "2020-01-01T00:00:00Z"


def divided(tree: Path, folder: Path, layers: Sequence[Layer]) -> list[Path]:
    """Divide a tree into those of its layers; what none of them names stays in the lowest.

    Args:
        tree: Root of the image; what belongs to other layers is moved out of it.
        folder: Where the others' trees are made.
        layers: The others, the lowest first.

    Returns:
        Trees, the lowest first.

    Raises:
        FleetfootError: A layer's pattern matches nothing.
    """
    trees = [tree]
    for number, layer in enumerate(layers):
        trees.append(folder / str(number))
        for pattern in layer.paths:
            found = sorted(tree.glob(pattern))
            if not found:
                raise FleetfootError(
                    f"layer {layer.name!r} names {pattern!r}, which the image does not have",
                    "the image is not built",
                    "correct the pattern in its image.toml",
                )
            for path in found:
                _move(path, tree, trees[-1])
    return trees


def _move(path: Path, tree: Path, target: Path) -> None:
    below = path.relative_to(tree)
    for parent in reversed(below.parents):
        copy = target / parent
        if not copy.exists():
            copy.mkdir(parents=True)
            found = (tree / parent).stat()
            shutil.chown(copy, found.st_uid, found.st_gid)
            shutil.copystat(tree / parent, copy)
    path.rename(target / below)


def write(trees: Sequence[Path], layout: Path, *, command: Sequence[str], user: str) -> None:
    """Write an OCI layout whose only image, `TAG`, has a layer for each tree.

    Args:
        trees: Roots, the lowest first.
        layout: Folder to make.
        command: What a container runs; each word is one argument.
        user: `uid:gid` it runs as.
    """
    image = f"{layout}:{TAG}"
    consequence = "the container image is not built"
    run(["umoci", "init", "--layout", str(layout)], consequence=consequence)
    run(["umoci", "new", "--image", image], consequence=consequence)
    for tree in trees:
        run(["umoci", "insert", "--image", image, str(tree), "/"], consequence=consequence)
    argv = ["umoci", "config", "--image", image, "--config.user", user, "--created", _EPOCH]
    argv += [f"--config.cmd={word}" for word in command]
    run(argv, consequence=consequence)
    run(["umoci", "gc", "--layout", str(layout)], consequence=consequence)
