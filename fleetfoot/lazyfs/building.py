"""Lazy forms of images that are built or named here: with the image `converter` and the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fleetfoot.images import build
from fleetfoot.images.definition import Definition
from fleetfoot.images.oci import TAG
from fleetfoot.lazyfs.convert import FORM, OPTIONS, Converted, Converter, attach, convert, versions
from fleetfoot.lazyfs.distribution import Repository
from fleetfoot.lazyfs.stores import Layout, Remote
from fleetfoot.lazyfs.table import PACKER
from fleetfoot.paths import cache_dir

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fleetfoot.lazyfs.stores import Store
    from fleetfoot.registry import Registry

__all__ = ["converted", "converter", "form_key", "push"]


def converted(
    store: Store, manifest: bytes, kind: str, progress: Callable[[str], None]
) -> Converted:
    """Return an image's lazy form; layers that the user's cache has are not converted again.

    Args:
        store: Where the image is.
        manifest: Its manifest.
        kind: The manifest's media type.
        progress: Takes one line at a time for a person to follow.
    """
    cache, made = cache_dir() / "lazy", converter(progress)
    return convert(store, manifest, kind, converter=made, cache=cache, progress=progress)


def converter(progress: Callable[[str], None]) -> Converter:
    """Return what converts layers; builds its programs unless the cache has them.

    Args:
        progress: Takes one line at a time for a person to follow.

    Raises:
        FleetfootError: They cannot be built.
    """
    # No role is applied to it: no programs are needed.
    image = build.build("converter", cache=cache_dir(), artifacts=cache_dir(), progress=progress)
    rows = [line.split("\t") for line in image.manifest.read_text().splitlines()]
    return Converter(
        image.path, versions({name: version for kind, name, version in rows if kind == "deb"})
    )


def form_key() -> str:
    """Return what changes when images would get another lazy form."""
    programs = build.key_of(Definition.load("converter"), cache_dir())
    return f"{FORM} {' '.join(OPTIONS)} {PACKER} {programs}"


def push(registry: Registry, layout: Path, repository: str, progress: Callable[[str], None]) -> str:
    """Push an image that was built here, after its lazy form: nobody sees one without the other.

    Args:
        registry: The stack's.
        layout: The image's OCI layout.
        repository: Where to.
        progress: Takes one line at a time for a person to follow.

    Returns:
        The image's reference by digest.

    Raises:
        FleetfootError: It cannot be converted, or the registry refuses.
    """
    built = Layout(layout)
    made = converted(built, *built.manifest(TAG), progress)
    attach(Remote(Repository(registry.access(), repository)), made)
    return registry.push(layout, repository)
