"""Images as the stack sees them: a content key before the build, what to boot after it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

from fleetfoot import artifacts
from fleetfoot.images import build, definition
from fleetfoot.machines.spec import BootImage
from fleetfoot.paths import PROJECT, cache_dir

__all__ = ["boot_image", "image_key", "known"]


def image_key(name: str) -> str:
    """Return the content key of an image; cheap, builds nothing.

    Raises:
        FleetfootError: There is no such image, or the node software is not built yet.
    """
    return build.key_of(definition.Definition.load(name), artifacts.directory())


def boot_image(name: str) -> dict[str, Any]:
    """Build an image unless the cache has it; return a `BootImage` as plain data."""
    built = build.build(name, cache=cache_dir(), artifacts=artifacts.directory(), progress=_tell)
    return asdict(
        BootImage(
            name=built.name,
            digest=built.digest,
            path=str(built.path),
            kernel=str(built.kernel),
            initrd=str(built.initrd),
            cmdline=built.cmdline,
            seed=built.seed,
        )
    )


def known() -> list[dict[str, Any]]:
    """Return the images: `name`, `key`, `built` (whether the cache has it), `bytes` (on disk)."""
    rows = []
    for path in sorted((PROJECT / "images").glob("*/image.toml")):
        name = path.parent.name
        key = image_key(name)
        folder = cache_dir() / "images" / f"{name}-{key}"
        size = sum(p.lstat().st_blocks * 512 for p in folder.rglob("*")) if folder.exists() else 0
        rows.append({"name": name, "key": key, "built": folder.exists(), "bytes": size})
    return rows


def _tell(line: str) -> None:
    """Progress of a build; the engine passes a provider's standard error on."""
    print(line, file=sys.stderr, flush=True)
