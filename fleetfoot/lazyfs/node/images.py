"""Whether an image is mounted lazily: all of its layers are, or none.

containerd downloads from the first layer on that is not there, with all above it. So the decision
is one for the image, made when its first layer is asked for, and kept for the others.
"""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fleetfoot.errors import FleetfootError
from fleetfoot.lazyfs import trace
from fleetfoot.lazyfs.artifact import (
    LARGEST_TRACE,
    Artifact,
    Descriptor,
    layers_of,
)
from fleetfoot.lazyfs.distribution import Access, Reference, Repository
from fleetfoot.lazyfs.node.registries import TRUSTED
from fleetfoot.lazyfs.node.store import Cache, Folder, Place
from fleetfoot.lazyfs.stores import Remote, artifact_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fleetfoot.lazyfs.artifact import LazyLayer
    from fleetfoot.lazyfs.table import Table

__all__ = ["Images"]

_REMEMBERED = 60.0  # seconds that a decision holds: a pull asks for all layers within
_KEPT = 600.0  # seconds that what a pull has prepared is kept without a snapshot
_GIVEN_UP = 600.0  # seconds that an image is pulled as ever which could not be mounted
_LAYERS_AT_ONCE = 4
# Each needs a connection of its own, whose handshake takes a node as long as some requests.
_REQUESTS_AT_ONCE = 2
_TIMEOUT = 5.0  # seconds without a byte until an image is pulled as ever


@dataclass(frozen=True)
class _Decision:
    until: float
    folders: dict[str, Folder]


class Images:
    """The images that this node was asked for.

    Args:
        root: The node's folder.
        certs: Folder with containerd's descriptions of registries.
        attach: Attaches a layer that will be mounted.
        log: Takes a line for the journal.
    """

    def __init__(
        self,
        root: Path,
        certs: Path,
        attach: Callable[[Folder], object],
        log: Callable[[str], object],
    ) -> None:
        self._root, self._certs, self._attach, self._log = root, certs, attach, log
        self._lock = threading.Lock()
        self._wanted: dict[str, float] = {}
        self._busy: dict[str, threading.Lock] = {}
        self._decided: dict[str, _Decision] = {}

    def layer(self, reference: str, manifest: str, layer: str) -> Folder | None:
        """Return the folder of a layer's sector image, or None where the image has no lazy form.

        Args:
            reference: Name of the image, as the pod has it.
            manifest: Digest of its manifest.
            layer: Digest of the layer.
        """
        host = reference.partition("/")[0]
        if "/" not in reference or not (self._certs / host / TRUSTED).exists():
            return None
        with self._lock:
            busy = self._busy.setdefault(manifest, threading.Lock())
        decided = self._known(manifest)
        if decided is None:
            with busy:
                decided = self._known(manifest) or self._newly(reference, manifest)
        return decided.folders.get(layer)

    def give_up(self, manifest: str) -> None:
        """Let an image be pulled as ever for a while: all of its layers, or none."""
        with self._lock:
            self._decided[manifest] = _Decision(time.monotonic() + _GIVEN_UP, {})

    def is_wanted(self, name: str) -> bool:
        """Whether a pull that is under way may need a folder which no snapshot has yet."""
        with self._lock:
            return time.monotonic() - self._wanted.get(name, -_KEPT) < _KEPT

    def _known(self, manifest: str) -> _Decision | None:
        with self._lock:
            found = self._decided.get(manifest)
        return found if found and time.monotonic() < found.until else None

    def _newly(self, reference: str, manifest: str) -> _Decision:
        folders = self._decide(reference, manifest)
        with self._lock:
            now, found = time.monotonic(), self._decided.get(manifest)
            if found is None or now >= found.until:  # else it was given up meanwhile
                found = self._decided[manifest] = _Decision(now + _REMEMBERED, folders)
            return found

    def _decide(self, reference: str, manifest: str) -> dict[str, Folder]:
        try:
            return self._found(Reference.parse(reference), manifest)
        except Exception as error:  # whatever it has: the image itself can be pulled
            self._log(f"{reference} is pulled as ever: {type(error).__name__}: {error}")
            return {}

    def _found(self, reference: Reference, manifest: str) -> dict[str, Folder]:
        access = Access.of_containerd(self._certs, reference.host)
        store = Remote(Repository(access, reference.name, timeout=_TIMEOUT))
        artifact = artifact_of(store, manifest)
        if artifact is None:
            return {}
        layers = layers_of(store.manifest(manifest)[0])
        if not artifact.covers([each.digest for each in layers]):
            self._log(f"{reference} is pulled as ever: its lazy form lacks layers")
            return {}
        place = Place(reference.host, reference.name)
        wanted = {each.digest for each in layers}
        lazy = [each for each in artifact.layers if each.layer in wanted]
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            folders = list(pool.map(lambda each: self._kept(store, each, place), lazy))
        self._trace(store, artifact)
        with ThreadPoolExecutor(_LAYERS_AT_ONCE) as pool:
            # containerd asks for one layer after the other, and each mount waits for the registry.
            list(pool.map(self._attached, folders))
        self._log(f"{reference} is mounted lazily: {len(folders)} layers, {_size(artifact)}")
        return {each.layer: folder for each, folder in zip(lazy, folders, strict=True)}

    def _attached(self, folder: Folder) -> None:
        try:
            self._attach(folder)
        except OSError as error:  # its mount tries again
            self._log(f"{folder.name} is not attached yet: {error}")

    def _trace(self, store: Remote, artifact: Artifact) -> None:
        """Remember which blocks to fetch ahead; without them an image starts as well, later."""
        if artifact.trace is None:
            return
        try:
            found = trace.parse(store.repository.blob(artifact.trace.digest, LARGEST_TRACE))
            for lazy in artifact.layers:
                name, pack = lazy.name, artifact.packs.get(lazy.layer)
                folder = Folder.of(self._root, name)
                if name in found and folder.path.exists():
                    folder.set_trace(found[name], pack.digest if pack else "")
        except (FleetfootError, OSError) as error:
            self._log(str(error))

    def _kept(self, store: Remote, lazy: LazyLayer, place: Place) -> Folder:
        name = lazy.name
        with self._lock:
            self._wanted[name] = time.monotonic()
        folder = Folder.of(self._root, name)
        data = store.blob(lazy.table.digest)
        table = lazy.table_of(data)
        folder.add(data, place)
        if lazy.comes_whole(table):
            self._bring(store, lazy, table, folder)
        return folder

    def _bring(self, store: Remote, lazy: LazyLayer, table: Table, folder: Folder) -> None:
        """Fetch a small layer whole; where that fails, it is read piece by piece as others are."""
        try:
            with folder.alone():
                if folder.data.exists():  # the server has to do with it, or it is here
                    return
                packed = store.repository.blob(lazy.image.digest, lazy.image.size)
                data, wrong = table.unpacked(range(table.block_count), packed)
                if wrong or len(packed) != table.packed_length:
                    raise FleetfootError(f"{lazy.image.digest} is not what its table says")
                with contextlib.closing(Cache(folder, table)) as cache:
                    if cache.write(0, data):
                        folder.mark_complete()
        except (FleetfootError, OSError) as error:
            self._log(f"{folder.name} is not fetched whole: {error}")


def _size(artifact: Artifact) -> str:
    described: list[Descriptor] = [each.image for each in artifact.layers]
    return f"{sum(each.size for each in described) / 2**20:.0f} MiB"
