"""bench apiserver: what online feels while batch engines storm, with one apiserver and with two.

All arms run on the same control machine, which is kept on one CPU of the host; clients and nodes
run on the others. Each round goes through the arms one after the other. In each arm short windows
take turns: idle, under the storm, and under as many engines that never rest (`saturated_*`: what
each side has left when offline takes whatever it can get). So all three are measured on the same
host, whose speed changes within minutes.

    shared        one apiserver, the fairness that Kubernetes has by itself
    shared_lanes  one apiserver, our lanes
    split         a group for each side, our lanes

The storm is the smallest one, in powers of two, that brings the online p99 of `shared` to ten times
its idle value; all arms get the same. Its engines work by the clock: offline's throughput falls
when their bursts outlast a tick.

Machine and budgets: the offline apiserver may use what it may in the stack `local`; the machine has
more memory, for it has 500 nodes.

Times and rates are medians of the rounds; leader changes are added up, under both storms; error
rates are those of the worst round. `late_offline_requests` are those that were still answered where
a window counted as idle.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

from fleetfoot.bench import cluster, plot, storm
from fleetfoot.bench.load import Generator
from fleetfoot.bench.report import Goal, Report, now, summary
from fleetfoot.errors import FleetfootError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["ARMS", "NODES", "ROUNDS", "SECONDS", "goals", "ratios", "run", "smallest_storm"]

ROUNDS, NODES, SECONDS = 3, 500, 30
# Whether engines have an apiserver of their own, and whether our lanes are there.
ARMS = {
    "shared": {"split": False, "lanes": False},
    "shared_lanes": {"split": False, "lanes": True},
    "split": {"split": True, "lanes": True},
}
_FACTOR = 10  # what the storm does to the shared arm's p99
_MOST_ENGINES, _LOOKS = 256, 2
_SPLIT_FACTOR, _KEPT = 1.5, 0.75  # split's p99 may grow so much; offline keeps so much
_COUNTS = ("leader_changes", "late_offline_requests")
_WORST = (
    "online_error_rate",
    "offline_error_rate",
    "offline_watch_error_rate",
    "saturated_online_error_rate",
    "saturated_offline_error_rate",
    "foreign_cpu_seconds",
    "stolen_cpu_seconds",
)
# Every node gets a /24 of the pods' range.
_CHANGES: dict[str, Any] = {
    "network": {**cluster.NETWORK, "pods": "10.100.0.0/14"},
    "pools": [{**cluster.CONTROL_POOL, "memory": "6GiB"}],
    "apiservers": cluster.shipped("local", "apiservers"),
}


def run(
    target: Path,
    rounds: int = ROUNDS,
    nodes: int = NODES,
    seconds: int = SECONDS,
    *,
    disk: bool = False,
    progress: Callable[[str], None] = print,
) -> Report:
    """Measure, write the JSON file and the picture beside it.

    Args:
        target: The JSON file; the picture has its name and ends in .png.
        rounds: How often each arm is measured.
        nodes: Simulated nodes.
        seconds: How long each figure is measured, in whole windows of 12 s.
        disk: Whether etcd writes to the host's disk, as everybody else does, or to memory.
        progress: Takes one line at a time for a person to follow.
    """
    started = now()
    control, *others = _cpus()
    cycles = math.ceil(seconds / storm.WINDOW)
    measured: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    with cluster.running((), progress, changes=_CHANGES, cpus=[control], memory=not disk) as bench:
        generator = Generator(cluster.STACK, others, progress)
        scene = storm.Scene(bench, generator, control)
        with scene.playing():
            progress(f"making {nodes} nodes and {nodes * storm.PODS_OF_A_NODE} pods")
            scene.fill(nodes)
            engines = _search(scene, 2 * cycles, progress)
            for number in range(1, rounds + 1):
                for arm, parts in ARMS.items():
                    scene.enter(**parts)
                    metrics = scene.measure(engines, cycles)
                    measured[arm].append(metrics)
                    progress(f"round {number} of {rounds}, {arm}: {_told(metrics)}")
    arms = {arm: summary(measured[arm], sums=_COUNTS, worst=_WORST) for arm in ARMS}
    setup = {
        "nodes": nodes,
        "standing_pods": nodes * storm.PODS_OF_A_NODE,
        "storm_engines": engines,
        "storm_burst": storm.BURST,
        "storm_period": storm.PERIOD,
        "online_rate": storm.RATE,
        "seconds": cycles * storm.WINDOW,
        "etcd_data": "disk" if disk else "memory",
        "control_cpus": 1,
        **bench.sizes(),
        "load_cpus": len(others),
    }
    report = Report("apiserver", arms, ratios(arms), measured, started, setup, goals(arms))
    report.write(target)
    title = f"Online under a storm of {engines} engines, {nodes} nodes, median of {rounds}"
    plot.sides(target.with_suffix(".png"), arms, title)
    return report


def ratios(arms: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return what the arms are compared by."""
    shared, split = arms["shared"], arms["split"]
    return {
        **{f"{arm}_storm_over_idle_p99": m["storm_over_idle_p99"] for arm, m in arms.items()},
        "shared_over_split_p99": shared["online_p99_ms"] / split["online_p99_ms"],
        **{
            key: split[key] / shared[key]
            for key in ("offline_throughput", "saturated_offline_throughput")
        },
    }


def goals(arms: Mapping[str, Mapping[str, float]]) -> dict[str, Goal]:
    """Return what should be: split holds under a storm that shared does not, and offline works."""
    found = ratios(arms)
    return {
        "split_storm_over_idle_p99": Goal(_SPLIT_FACTOR, found["split_storm_over_idle_p99"]),
        "shared_storm_over_idle_p99": Goal(
            _FACTOR, found["shared_storm_over_idle_p99"], at_least=True
        ),
        "offline_throughput": Goal(_KEPT, found["offline_throughput"], at_least=True),
        "leader_changes": Goal(0, arms["split"]["leader_changes"]),
        "online_error_rate": Goal(0, arms["split"]["online_error_rate"]),
        "late_offline_requests": Goal(0, max(m["late_offline_requests"] for m in arms.values())),
    }


def smallest_storm(growth: Callable[[int], float]) -> int:
    """Return the smallest storm, a power of two, that brings p99 to ten times its idle value.

    One look may be luck, by which the storm would be too small for the rounds: it has to do so
    twice.

    Args:
        growth: Measures by what a storm of so many engines multiplies it.

    Raises:
        FleetfootError: None does.
    """
    engines = 1
    while any(growth(engines) < _FACTOR for _ in range(_LOOKS)):
        engines *= 2
        if engines > _MOST_ENGINES:
            raise FleetfootError(
                f"{_MOST_ENGINES} engines bring the online p99 to less than {_FACTOR} times idle",
                "there is no storm by which arms could be told apart",
                "take a machine with fewer CPUs, or more --nodes",
            )
    return engines


def _search(scene: storm.Scene, cycles: int, progress: Callable[[str], None]) -> int:
    """Return the storm's size in engines."""
    scene.enter(**ARMS["shared"])

    def growth(engines: int) -> float:
        found = scene.storm_over_idle(engines, cycles)
        progress(f"storm of {engines}: online p99 is {found:.1f} times that of idle")
        return found

    return smallest_storm(growth)


def _cpus() -> list[int]:
    """The CPU of the control machine, then those of the load."""
    mine = sorted(os.sched_getaffinity(0), reverse=True)
    if len(mine) < 2:  # noqa: PLR2004  (one each)
        raise FleetfootError(
            "this process has one CPU",
            "clients would be measured instead of the apiserver",
            "run it on a host with at least two",
        )
    return mine


def _told(metrics: Mapping[str, float]) -> str:
    return (
        f"online p99 {metrics['idle_p99_ms']:.0f} ms idle, {metrics['online_p99_ms']:.0f} ms in the"
        f" storm; offline {metrics['offline_throughput']:.1f} requests/s"
    )
