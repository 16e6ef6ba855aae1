"""Images as the stack sees them: a content key before the build, what to boot after it."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleetfoot import artifacts
from fleetfoot.images import build, definition
from fleetfoot.machines.spec import BootImage
from fleetfoot.paths import PROJECT, cache_dir, size_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["boot_image", "image_key", "known", "outdated", "tell"]


def image_key(name: str) -> str:
    """Return the content key of an image; cheap, builds nothing.

    Raises:
        FleetfootError: There is no such image, or the node software is not built yet.
    """
    return build.key_of(definition.Definition.load(name), artifacts.directory())


def boot_image(name: str) -> dict[str, Any]:
    """Build an image unless the cache has it; return a `BootImage` as plain data."""
    built = build.build(name, cache=cache_dir(), artifacts=artifacts.directory(), progress=tell)
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
        folder = _images() / f"{name}-{key}"
        rows.append({"name": name, "key": key, "built": folder.exists(), "bytes": size_of(folder)})
    return rows


def outdated(current: Iterable[dict[str, Any]]) -> list[Path]:
    """Return cached images other than `current` (of `known`) that no machine stands on.

    A machine stands on an image if a stack of this checkout has it, or if it runs on this host.
    """
    wanted = {f"{row['name']}-{row['key']}" for row in current}
    used = {path.name for path in (*_recorded(), *_mounted(), *_open())}
    built = (path for path in _images().glob("*-*/image.json"))
    return sorted(path.parent for path in built if path.parent.name not in wanted | used)


def _images() -> Path:
    return cache_dir() / "images"


def _recorded() -> Iterator[Path]:
    for record in (PROJECT / ".fleetfoot").glob("*/machines/*/machine.json"):
        yield Path(json.loads(record.read_text())["spec"]["image"]["path"]).parent


def _mounted() -> Iterator[Path]:
    for line in Path("/proc/mounts").read_text().splitlines():
        lower = re.search(r"lowerdir=([^,: ]+)", line)
        if lower:
            yield Path(lower[1]).parent


def _open() -> Iterator[Path]:
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # of a process that has just ended
            yield descriptor.readlink().parent


def tell(line: str) -> None:
    """Progress of a build; the engine passes a provider's standard error on."""
    print(line, file=sys.stderr, flush=True)
