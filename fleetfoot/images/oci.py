"""Container images from trees: one layer, an OCI layout, made by umoci."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fleetfoot.shell import run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["TAG", "write"]

TAG = "image"
_EPOCH = "2020-01-01T00:00:00Z"


def write(tree: Path, layout: Path, *, command: Sequence[str], user: str) -> None:
    """Write an OCI layout whose only image, `TAG`, holds `tree`.

    Args:
        tree: Root of the image.
        layout: Folder to make.
        command: What a container runs; each word is one argument.
        user: `uid:gid` it runs as.
    """
    image = f"{layout}:{TAG}"
    consequence = "the container image is not built"
    run(["umoci", "init", "--layout", str(layout)], consequence=consequence)
    run(["umoci", "new", "--image", image], consequence=consequence)
    run(["umoci", "insert", "--image", image, str(tree), "/"], consequence=consequence)
    argv = ["umoci", "config", "--image", image, "--config.user", user, "--created", _EPOCH]
    argv += [f"--config.cmd={word}" for word in command]
    run(argv, consequence=consequence)
    run(["umoci", "gc", "--layout", str(layout)], consequence=consequence)
