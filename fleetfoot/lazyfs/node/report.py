"""What the node's services are doing: for people (`status.json`) and for Prometheus.

`metrics.prom` is meant for the textfile collector of node_exporter, which serves it over TLS with
the node's other metrics: no port of its own.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from fleetfoot.lazyfs.node.mounts import mounted
from fleetfoot.lazyfs.node.store import Folder, keep

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fleetfoot.lazyfs.node.devices import Devices
    from fleetfoot.lazyfs.node.snapshots import Snapshots

__all__ = ["Reporter", "metrics", "status"]

_EVERY = 2.0  # seconds
_REFERENCE = "containerd.io/snapshot/cri.image-ref"
#: Counters of the server, by its names: the metric's name, its labels, what it is.
_COUNTERS = {
    "bytes_fetched": ("fetched_bytes_total", "", "Bytes that came from registries, verified."),
    "bytes_background": ("background_bytes_total", "", "Of these, to complete images."),
    "requests": ("requests_total", "", "Requests to registries that gave verified bytes."),
    "seconds_fetching": ("fetching_seconds_total", "", "Seconds spent on them."),
    "blocks_hit": (
        "blocks_total",
        'here="yes"',
        "Blocks read, by whether they were here.",
    ),
    "blocks_missed": ("blocks_total", 'here="no"', ""),
    "corrupted_cached": (
        "corrupted_blocks_total",
        'where="cache"',
        "Damaged ones, fetched again.",
    ),
    "corrupted_fetched": ("corrupted_blocks_total", 'where="registry"', ""),
    "uncached": ("uncached_blocks_total", "", "Blocks passed through, for the disk was full."),
    "blocks_evicted": ("evicted_blocks_total", "", "Blocks that left a disk which was full."),
    "reads_failed": ("failed_reads_total", "", "Reads that failed (EIO)."),
    "errors_unreachable": (
        "errors_total",
        'cause="unreachable"',
        "Requests in vain.",
    ),
    "errors_absent": ("errors_total", 'cause="absent"', ""),
    "errors_refused": ("errors_total", 'cause="refused"', ""),
}


def status(
    root: Path, stats: dict[str, Any], snapshots: Snapshots, devices: Devices
) -> dict[str, Any]:
    """Return what is mounted lazily.

    Args:
        root: The node's folder.
        stats: What the server says (`Server.report`).
        snapshots: What is mounted.
        devices: And from what.

    Returns:
        `images`: for each, `reference`, `bytes`, `present` (bytes) and `layers`, the lowest first,
        of `layer`, `way` (`Devices.way`), `bytes`, `present`; `counts`: of the server.
    """
    known: dict[str, Any] = stats.get("layers", {})
    images: dict[str, list[dict[str, Any]]] = {}
    there = mounted()
    for snapshot in sorted(snapshots.all(), key=lambda each: each.created):
        if not snapshot.layer:
            continue
        found = known.get(snapshot.layer, {})
        way = devices.way(snapshots.folder(snapshot), there)
        if way == "file":  # of which a server that was started since knows nothing
            size = present = _size(Folder.of(root, snapshot.layer))
        else:
            size = found.get("bytes", 0)
            present = size * found.get("present", 0) // max(found.get("blocks", 0), 1)
        layer = {"layer": snapshot.layer, "way": way, "bytes": size, "present": present}
        images.setdefault(snapshot.labels.get(_REFERENCE, ""), []).append(layer)
    described = [
        {
            "reference": reference,
            "bytes": sum(each["bytes"] for each in layers),
            "present": sum(each["present"] for each in layers),
            "layers": layers,
        }
        for reference, layers in images.items()
    ]
    return {"images": described, "counts": stats.get("counts", {})}


def _size(folder: Folder) -> int:
    try:
        return folder.data.stat().st_size
    except OSError:  # it is just being removed
        return 0


def metrics(found: dict[str, Any]) -> str:
    """Return a status in Prometheus' text format."""
    lines: list[str] = []
    told = set[str]()
    for counter, (name, labels, what) in _COUNTERS.items():
        full = f"fleetfoot_lazy_{name}"
        if full not in told:
            lines += [f"# HELP {full} {what}", f"# TYPE {full} counter"]
            told.add(full)
        shown = f"{{{labels}}}" if labels else ""
        lines.append(f"{full}{shown} {found['counts'].get(counter, 0)}")
    for name, key, what in (
        ("image_bytes", "bytes", "Size of an image's sector images, unpacked."),
        ("image_present_bytes", "present", "Bytes of them that are on the node."),
    ):
        full = f"fleetfoot_lazy_{name}"
        lines += [f"# HELP {full} {what}", f"# TYPE {full} gauge"]
        for image in found["images"]:
            reference = image["reference"].replace("\\", r"\\").replace('"', r"\"")
            lines.append(f'{full}{{image="{reference}"}} {image[key]}')
    return "\n".join(lines) + "\n"


class Reporter:
    """Writes what there is to say, again and again.

    Args:
        root: The node's folder.
        run: Folder of the server's `stats.json`, and of what is written.
        snapshots: What is mounted.
        devices: And from what.
        log: Takes a line for the journal.
    """

    def __init__(
        self,
        root: Path,
        run: Path,
        snapshots: Snapshots,
        devices: Devices,
        log: Callable[[str], object],
    ) -> None:
        self._root, self._run, self._log = root, run, log
        self._snapshots, self._devices = snapshots, devices

    def work(self) -> None:
        """Write it every other second; does not return."""
        while True:
            try:
                self.write()
            except Exception as error:  # figures may be late, not gone for good
                self._log(f"figures are not written: {type(error).__name__}: {error}")
            time.sleep(_EVERY)

    def write(self) -> None:
        """Write it once."""
        try:
            stats = json.loads((self._run / "stats.json").read_text())
        except (OSError, ValueError):  # the server has said nothing yet
            stats = {}
        found = status(self._root, stats, self._snapshots, self._devices)
        keep(self._run / "status.json", json.dumps(found).encode())
        keep(self._run / "metrics.prom", metrics(found).encode())
