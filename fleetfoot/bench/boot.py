"""bench boot: from a machine's start to a Ready node, serverless against generic.

Each round starts one fresh machine of each image, one after the other, on the same hypervisor with
the same CPUs, memory and disk; it joins a running control plane by itself.

    ssh               sshd's banner reaches the host
    containerd_ready  containerd tells the machine's service manager that it serves
    node_ready        a watch on the apiserver shows the node Ready
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleetfoot.bench import cluster, plot
from fleetfoot.bench.report import Report, medians, now
from fleetfoot.cluster import is_ready
from fleetfoot.errors import FleetfootError
from fleetfoot.machines import ledger, process
from fleetfoot.machines.accel import accelerator
from fleetfoot.paths import taken

if TYPE_CHECKING:
    from collections.abc import Callable

    from fleetfoot.bench.cluster import BenchCluster
    from fleetfoot.machines.spec import BootImage

__all__ = ["ROUNDS", "run"]

ROUNDS = 3
_ARMS = ("generic", "serverless")
_RATIOS = ("node_ready", "containerd_ready", "ssh", "image_size")
_CPUS, _MEMORY_MIB, _DISK_MIB = 2, 2048, 10240
_READY_SECONDS = 900
_CONNECT_SECONDS = 0.2


def run(target: Path, rounds: int = ROUNDS, progress: Callable[[str], None] = print) -> Report:
    """Measure, write the JSON file and the picture beside it.

    Args:
        target: The JSON file; the picture has its name and ends in .png.
        rounds: Machines of each image.
        progress: Takes one line at a time for a person to follow.
    """
    started = now()
    measured: dict[str, list[dict[str, float]]] = {arm: [] for arm in _ARMS}
    stages: dict[str, list[dict[str, float]]] = {arm: [] for arm in _ARMS}
    with cluster.running(_ARMS, progress) as bench:
        # Asked here, of the kernel that can be probed: both arms run on what it says.
        progress(f"accelerator: {accelerator(Path(bench.images['serverless'].kernel))}")
        sizes = {arm: image_size(bench.images[arm]) for arm in _ARMS}
        for number in range(1, rounds + 1):
            for arm in _ARMS:
                metrics, lengths = _round(bench, arm, f"{arm}-{number}")
                measured[arm].append(metrics)
                stages[arm].append(lengths)
                told = ", ".join(f"{key} {metrics[key]:.1f} s" for key in _RATIOS[:3])
                progress(f"round {number} of {rounds}, {arm}: {told}")
    arms = {arm: {**medians(measured[arm]), "image_size": float(sizes[arm])} for arm in _ARMS}
    ratios = {key: arms["generic"][key] / arms["serverless"][key] for key in _RATIOS}
    report = Report("boot", arms, ratios, measured, started)
    report.write(target)
    bars = {arm: medians(stages[arm]) for arm in _ARMS}
    title = f"From start to Ready, median of {rounds}"
    plot.stages(target.with_suffix(".png"), bars, ledger.STAGES, title)
    return report


def image_size(image: BootImage) -> int:
    """Return the bytes that an image takes on disk: what a provider keeps and caches."""
    parts = [Path(part) for part in (image.path, image.kernel, image.initrd) if part]
    return taken(parts)


def _round(bench: BenchCluster, image: str, name: str) -> tuple[dict[str, float], dict[str, float]]:
    """Start one machine; return its metrics and the lengths of its stages, in seconds."""
    with _NodeWatch(bench, name) as node, _Banner(bench.address(name)) as banner:
        bench.start(name, image, cpus=_CPUS, memory=_MEMORY_MIB, disk=_DISK_MIB)
        daemon = process.find(bench.fleet.paths.record(name))
        if daemon is None or not node.wait() or not banner.wait():
            console = bench.fleet.paths.machines / name / "console.log"
            tail = console.read_text(errors="replace")[-2000:] if console.exists() else ""
            raise FleetfootError(
                f"{name} was not Ready within {_READY_SECONDS} s; the end of its console:\n{tail}",
                "nothing can be compared",
            )
    start = ledger.machine_start(daemon)
    marks = ledger.collect(bench.fleet, name).marks
    marks["node"] = node.at - start
    bench.drop(name)
    found = ledger.Ledger(name, image, marks)
    metrics = {
        "ssh": banner.at - start,
        "containerd_ready": marks["runtime"],
        "node_ready": marks["node"],
    }
    return {**metrics, **{f"stage_{k}": v for k, v in found.lengths.items()}}, found.lengths


class _Moment(threading.Thread):
    """Notes when something was seen.

    Attributes:
        at: When, on the host's clock.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.at = 0.0
        self._seen = threading.Event()
        self._stopped = threading.Event()

    def __enter__(self) -> Any:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join()

    def note(self) -> None:
        """Note the moment."""
        self.at = ledger.host_clock()
        self._seen.set()

    def wait(self) -> bool:
        """Wait for it; return whether it came."""
        return self._seen.wait(_READY_SECONDS)


class _Banner(_Moment):
    """When sshd's banner comes."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address

    def run(self) -> None:
        """Ask again and again, each time no longer than a connection takes."""
        while not self._stopped.is_set():
            with contextlib.suppress(OSError):
                place = (self._address, 22)
                with socket.create_connection(place, timeout=_CONNECT_SECONDS) as connection:
                    connection.settimeout(_READY_SECONDS)
                    if connection.recv(4) == b"SSH-":
                        self.note()
                        return
            self._stopped.wait(_CONNECT_SECONDS / 10)


class _NodeWatch(_Moment):
    """When the apiserver shows a node Ready."""

    def __init__(self, bench: BenchCluster, name: str) -> None:
        super().__init__()
        path = f"/api/v1/nodes?watch=1&fieldSelector=metadata.name%3D{name}"
        self._argv = bench.cluster.command("get", "--raw", path)
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Any:
        self._process = subprocess.Popen(self._argv, stdout=subprocess.PIPE, text=True)
        return super().__enter__()

    def __exit__(self, *args: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        super().__exit__(*args)

    def run(self) -> None:
        """Read the watch until the node is Ready."""
        for line in (self._process and self._process.stdout) or ():
            if is_ready(json.loads(line)["object"]):
                self.note()
                return
