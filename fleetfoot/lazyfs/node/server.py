"""All layers of a node: those that are read, and what the background does for them."""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from fleetfoot.errors import FleetfootError
from fleetfoot.lazyfs.distribution import Access, Repository
from fleetfoot.lazyfs.node.layer import Counts, Layer
from fleetfoot.lazyfs.node.store import Cache, Folder, Place

__all__ = ["Server"]

_PAUSE = 1.0  # seconds between two looks at what is to be done
_PIECE = 16  # blocks that the background fetches at once: 1 MiB


@dataclass
class Server:
    """The layers that are read, and what the background does for them.

    Attributes:
        root: The node's folder.
        certs: Folder with containerd's descriptions of registries.
        deadline: Seconds for which a read waits for its registry.
        rate: Bytes a second that the background fetches; 0 turns it off.
        stats: File for what happened; none is written where it is None.
    """

    root: Path = Path("/var/lib/fleetfoot-lazy")
    certs: Path = Path("/etc/containerd/certs.d")
    deadline: float = 300.0
    rate: float = 16 * 2**20
    stats: Path | None = None
    counts: Counts = field(default_factory=Counts)
    _layers: dict[str, Layer] = field(default_factory=dict)
    _repositories: dict[Place, Repository] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def layer(self, image: str) -> Layer:
        """Return a layer by the hex of its sector image.

        Raises:
            FleetfootError: There is none of that name, or it cannot be used.
        """
        with self._lock:
            if image not in self._layers:
                folder = Folder.of(self.root, image)
                table = folder.table()
                self._layers[image] = Layer(
                    table,
                    Cache(folder, table),
                    lambda: self._origins(folder),
                    counts=self.counts,
                    deadline=self.deadline,
                    log=_log,
                )
            return self._layers[image]

    def names(self) -> list[str]:
        """Return what can be served."""
        return [folder.image for folder in Folder.all(self.root)]

    def work(self) -> None:
        """Complete layers in the background, and say what happened; does not return."""
        while True:
            time.sleep(_PAUSE)
            try:
                self.report()
                if self.rate:
                    self._complete_something()
            except (OSError, FleetfootError) as error:
                _log(f"in the background: {error}")

    def report(self) -> None:
        """Write what happened so far."""
        if self.stats is None:
            return
        with self._lock:
            layers = dict(self._layers)
        described = {
            image: {
                "blocks": layer.table.block_count,
                "present": layer.cache.count,
                "touched": layer.touched,
                "bytes": layer.table.length,
            }
            for image, layer in layers.items()
        }
        part = self.stats.with_name(f".{self.stats.name}")
        part.write_text(json.dumps({"counts": self.counts, "layers": described}))
        part.replace(self.stats)

    def _complete_something(self) -> None:
        with self._lock:
            layers = list(self._layers.items())
        for image, layer in layers:
            folder = Folder.of(self.root, image)
            if folder.is_complete or not folder.path.exists():
                continue
            begun, fetched = time.monotonic(), 0
            while (run := _run(layer)) and time.monotonic() - begun < _PAUSE:
                layer.fetch(run)
                size = len(run) * layer.table.block
                fetched += size
                self.counts.add("bytes_background", size)
                time.sleep(max(fetched / self.rate - (time.monotonic() - begun), 0))
            if not run:
                folder.mark_complete()
                _log(f"{image} is complete")
            return

    def _origins(self, folder: Folder) -> list[Repository]:
        return [self._repository(place) for place in folder.places()]

    def _repository(self, place: Place) -> Repository:
        with self._lock:
            if place not in self._repositories:
                access = Access.of_containerd(self.certs, place.host)
                self._repositories[place] = Repository(access, place.name)
            return self._repositories[place]


def _run(layer: Layer) -> range:
    """Return the first blocks that are missing, as one run."""
    first = next(layer.missing(), None)
    if first is None:
        return range(0)
    last = first + 1
    while last < min(first + _PIECE, layer.table.block_count) and not layer.cache.has(last):
        last += 1
    return range(first, last)


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
