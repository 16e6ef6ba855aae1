"""bench apiserver: what online feels while batch engines storm, with one apiserver and with two.

All arms run on the same control machine, which is kept on one CPU of the host; clients and nodes
run on the others. Each round goes through the arms one after the other, and each arm is measured
twice: idle, and under the storm.

    shared        one apiserver, the fairness that Kubernetes has by itself
    shared_lanes  one apiserver, our lanes
    split         a group for each side, our lanes

The storm is the smallest one, in powers of two, that brings the online p99 of `shared` to ten times
its idle value; all arms get the same. Its engines work by the clock: offline's throughput falls
when their bursts outlast a tick. Then as many engines work without rest (`saturated_*`): what each
side has left when offline takes whatever it can get.

Times and rates are medians of the rounds; leader changes are added up, under both storms; error
rates are those of the worst round.
"""

from __future__ import annotations

import math
import os
import time
from statistics import median
from typing import TYPE_CHECKING, Any

from fleetfoot.bench import cluster, plot
from fleetfoot.bench.load import Generator, Side, node
from fleetfoot.bench.processes import Usage
from fleetfoot.bench.report import Goal, Report, now, summary
from fleetfoot.cluster import Cluster
from fleetfoot.errors import FleetfootError
from fleetfoot.machines import ssh
from fleetfoot.shell import run as run_program
from fleetfoot.stack import sides
from fleetfoot.stack.inventory import API_PORTS, api_url

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from fleetfoot.bench.cluster import BenchCluster

__all__ = ["ARMS", "NODES", "ROUNDS", "SECONDS", "goals", "ratios", "run", "smallest_storm"]

ROUNDS, NODES, SECONDS = 3, 500, 30
ARMS = ("shared", "shared_lanes", "split")
_FACTOR = 10  # what the storm does to the shared arm's p99
_MOST_ENGINES = 256
_SPLIT_FACTOR, _KEPT = 1.5, 0.75  # split's p99 may grow so much; offline keeps so much
_COUNTS = ("leader_changes",)
_WORST = (
    "online_error_rate",
    "offline_error_rate",
    "saturated_online_error_rate",
    "saturated_offline_error_rate",
    "foreign_cpu_seconds",
    "stolen_cpu_seconds",
)
_PODS_AT_MOST = 110  # of a node, as kubelets have it
_PODS_OF_A_NODE = 4  # that stand there all the time
_BURST, _PERIOD = 5, 4  # pods an engine makes at once, and how often
_RATE, _OBJECTS = 50, 100
_WARM_UP, _SETTLE, _READY_SECONDS = 5, 8, 180
# Before whatever else the host does; the clients that are measured most closely come first.
_NICE = {"online": -15, "nodes": -10, "offline": -5}
_ONLINE_NAMESPACE = "online"
_DATA = ["/var/lib/etcd", "/var/lib/etcd-events"]
# Every node gets a /24 of the pods' range.
_CHANGES: dict[str, Any] = {
    "network": {**cluster.NETWORK, "pods": "10.100.0.0/14"},
    "pools": [{**cluster.CONTROL_POOL, "memory": "6GiB", "volumes": _DATA}],
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
        seconds: How long each figure is measured.
        disk: Whether etcd writes to the host's disk, as everybody else does, or to memory.
        progress: Takes one line at a time for a person to follow.
    """
    started = now()
    control, *others = _cpus()
    measured: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    with cluster.running((), progress, changes=_CHANGES, cpus=[control], memory=not disk) as bench:
        scene = _Scene(bench, Generator(cluster.STACK, others, progress), seconds, control)
        with scene.generator.nodes(scene.nodes, nice=_NICE["nodes"]):
            progress(f"making {nodes} nodes and {nodes * _PODS_OF_A_NODE} pods")
            scene.fill(nodes)
            storm = scene.search(rounds, progress)
            for number in range(1, rounds + 1):
                for arm in ARMS:
                    metrics = scene.measure(arm, storm)
                    measured[arm].append(metrics)
                    progress(f"round {number} of {rounds}, {arm}: {_told(metrics)}")
    arms = {arm: summary(measured[arm], sums=_COUNTS, worst=_WORST) for arm in ARMS}
    setup = {
        "nodes": nodes,
        "standing_pods": nodes * _PODS_OF_A_NODE,
        "storm_engines": storm,
        "storm_burst": _BURST,
        "storm_period": _PERIOD,
        "online_rate": _RATE,
        "seconds": seconds,
        "etcd_data": "disk" if disk else "memory",
        "control_cpus": 1,
        "load_cpus": len(others),
    }
    report = Report("apiserver", arms, ratios(arms), measured, started, setup, goals(arms))
    report.write(target)
    title = f"Online under a storm of {storm} engines, {nodes} nodes, median of {rounds}"
    plot.sides(target.with_suffix(".png"), arms, title)
    return report


def ratios(arms: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return what the arms are compared by."""
    storm = {
        f"{arm}_storm_over_idle_p99": m["online_p99_ms"] / m["idle_p99_ms"]
        for arm, m in arms.items()
    }
    shared, split = arms["shared"], arms["split"]
    return {
        **storm,
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
    }


def smallest_storm(p99: Callable[[int], float], idle: float) -> int:
    """Return the smallest storm, a power of two, that brings p99 to ten times its idle value.

    Args:
        p99: Measures it under a storm of so many engines.
        idle: Its value without any.

    Raises:
        FleetfootError: None does.
    """
    engines = 1
    while p99(engines) < _FACTOR * idle:
        engines *= 2
        if engines > _MOST_ENGINES:
            raise FleetfootError(
                f"{_MOST_ENGINES} engines bring the online p99 to less than {_FACTOR} times idle",
                "there is no storm by which arms could be told apart",
                "take a machine with fewer CPUs, or more --nodes",
            )
    return engines


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


class _Scene:
    """The cluster as the arms find it: nodes, standing pods, clients of both sides."""

    def __init__(self, bench: BenchCluster, generator: Generator, seconds: int, cpu: int) -> None:
        self.bench, self.generator, self._seconds = bench, generator, seconds
        self._cpu = cpu
        self._arm = ""
        urls = {group: f"https://{bench.control}:{port}" for group, port in API_PORTS.items()}
        operators = ["fleetfoot:operators"]
        self.nodes = generator.client(
            urls["online"], "kubernetes", "fleetfoot:bench-nodes", ["system:nodes", *operators]
        )
        self.online = generator.client(
            urls["online"], "kubernetes", "fleetfoot:bench-online", operators
        )
        self._engines = {
            group: generator.client(url, authority, "fleetfoot:bench-engine", [sides.OFFLINE_GROUP])
            for (group, url), authority in zip(
                urls.items(), ("kubernetes", "kubernetes-offline"), strict=True
            )
        }

    def fill(self, nodes: int) -> None:
        """Make nodes, the pods that stand on them, and what the online client reads."""
        for manifest in (
            *sides.admission(api_url(cluster.STACK, "offline")),
            *sides.workplace(),
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _ONLINE_NAMESPACE}},
        ):
            self.bench.apply([manifest])
        made = [("/api/v1/nodes", node(n, _PODS_AT_MOST)) for n in range(nodes)]
        self.generator.fill(self.nodes, made)
        place = f"/api/v1/namespaces/{sides.OFFLINE_NAMESPACE}/pods"
        count = nodes * _PODS_OF_A_NODE
        pods = [(place, _pod(n, n % nodes)) for n in range(count)]
        place = f"/api/v1/namespaces/{_ONLINE_NAMESPACE}/configmaps"
        objects = [(place, _config_map(n)) for n in range(_OBJECTS)]
        self._wait("the nodes are Ready", lambda: self._ready_nodes() >= nodes)
        self.generator.fill(self.online, [*pods, *objects])
        self._wait("the pods run", lambda: self._pods("status.phase=Running") >= count)

    def search(self, rounds: int, progress: Callable[[str], None]) -> int:
        """Return the storm's size in engines; what decides on it is measured in rounds, too."""
        self._enter("shared")

        def p99(told: str, measure: Callable[[], Side]) -> float:
            found = [measure().p99 for _ in range(rounds)]
            progress(f"{told}: online p99 {', '.join(f'{ms:.0f}' for ms in found)} ms")
            return median(found)

        idle = p99("idle", self._online)
        return smallest_storm(lambda n: p99(f"storm of {n}", lambda: self._storm(n)[0]), idle)

    def measure(self, arm: str, engines: int) -> dict[str, float]:
        """Return the metrics of one arm, idle and under a storm."""
        self._enter(arm)
        idle = self._online()
        leaders = self._leaders()
        online, offline, usage = self._storm(engines)
        full_online, full_offline, _ = self._storm(engines, period=0)
        changes = sum(self._leaders()) - sum(leaders)
        return {
            "idle_p50_ms": idle.p50,
            "idle_p99_ms": idle.p99,
            **_side("online", online),
            **_side("offline", offline),
            "offline_pods": offline.pods,
            **usage,
            "leader_changes": float(changes),
            "saturated_online_p99_ms": full_online.p99,
            "saturated_online_error_rate": full_online.error_rate,
            "saturated_offline_throughput": full_offline.throughput,
            "saturated_offline_error_rate": full_offline.error_rate,
        }

    def _enter(self, arm: str) -> None:
        """Make the cluster what the arm says, and let it come to rest."""
        split = arm == "split"
        self._ssh("systemctl", "start" if split else "stop", "kube-apiserver@offline")
        if arm == "shared":
            names = [f"{each['kind']}/{each['metadata']['name']}" for each in sides.lanes()]
            self.bench.cluster.kubectl("delete", "--ignore-not-found", *reversed(names))
        else:
            self.bench.apply(sides.lanes())
        if split:
            self._wait("the offline apiserver is ready", Cluster(cluster.STACK, "offline").answers)
        self._arm = arm
        self._rest()

    def _rest(self) -> None:
        """Wait until nothing of an earlier storm is left."""
        label = "--selector=engine"
        self.bench.cluster.kubectl(
            "delete", "pods", f"--namespace={sides.OFFLINE_NAMESPACE}", label, "--wait=false"
        )
        self._wait("the storm's pods are gone", lambda: self._pods("", label) == 0)
        time.sleep(_SETTLE)

    def _online(self) -> Side:
        run = self.generator.start(
            "online", self.online, nice=_NICE["online"], **self._online_variables()
        )
        return Side.parse(run.metrics(self._patience), self._seconds)

    def _storm(self, engines: int, period: int = _PERIOD) -> tuple[Side, Side, dict[str, float]]:
        # It goes on until the last online request is answered, and for whole ticks.
        window = math.ceil((self._seconds + _WARM_UP) / _PERIOD) * _PERIOD
        client = self._engines["offline" if self._arm == "split" else "online"]
        variables = {
            "NAMESPACE": sides.OFFLINE_NAMESPACE,
            "ENGINES": engines,
            "BURST": _BURST,
            "PERIOD": period,
            "WARM_UP": _WARM_UP,
            "SECONDS": window,
        }
        offline = self.generator.start("offline", client, nice=_NICE["offline"], **variables)
        time.sleep(_WARM_UP)
        usage = Usage(cluster.STACK, cluster.CONTROL, self._cpu)
        run = self.generator.start(
            "online", self.online, nice=_NICE["online"], **self._online_variables()
        )
        online = Side.parse(run.metrics(self._patience), self._seconds)
        used = usage.since()
        metrics = offline.metrics(self._patience)
        self._rest()
        return online, Side.parse(metrics, window), used

    def _online_variables(self) -> dict[str, object]:
        return {
            "NAMESPACE": _ONLINE_NAMESPACE,
            "OBJECTS": _OBJECTS,
            "RATE": _RATE,
            "WARM_UP": _WARM_UP,
            "SECONDS": self._seconds,
        }

    @property
    def _patience(self) -> float:
        return self._seconds + 2 * _WARM_UP + 90

    def _leaders(self) -> list[int]:
        """How often each of the leases changed hands so far."""
        leases = [
            self.bench.cluster.get("lease", name, "--namespace=kube-system")["spec"]
            for name in ("kube-scheduler", "kube-controller-manager")
        ]
        return [int(lease.get("leaseTransitions", 0)) for lease in leases]

    def _ready_nodes(self) -> int:
        path = "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}"
        return self.bench.cluster.kubectl("get", "nodes", "-o", path).split().count("True")

    def _pods(self, fields: str, *options: str) -> int:
        place = f"--namespace={sides.OFFLINE_NAMESPACE}"
        found = self.bench.cluster.kubectl(
            "get", "pods", place, f"--field-selector={fields}", "-o", "name", *options
        )
        return len(found.split())

    def _ssh(self, *command: str) -> None:
        run_program([*ssh.command(cluster.STACK), f"root@{self.bench.control}", *command])

    def _wait(self, what: str, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not true():
            if time.monotonic() > deadline:
                raise FleetfootError(
                    f"it did not come true within {_READY_SECONDS} s that {what}",
                    "the cluster is not what should be measured",
                )
            time.sleep(1)


def _side(name: str, side: Side) -> dict[str, float]:
    return {
        f"{name}_p50_ms": side.p50,
        f"{name}_p99_ms": side.p99,
        f"{name}_error_rate": side.error_rate,
        f"{name}_throughput": side.throughput,
        **{f"{name}_{op}_p99_ms": value for op, value in side.p99_of.items()},
    }


def _pod(number: int, node: int) -> dict[str, Any]:
    requests = {"cpu": "100m", "memory": "64Mi"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"standing-{number}", "labels": {"standing": "yes"}},
        "spec": {
            "nodeName": f"node-{node}",
            "containers": [
                {"name": "task", "image": "batch/task", "resources": {"requests": requests}}
            ],
        },
    }


def _config_map(number: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"online-{number}", "labels": {"part": str(number % 10)}},
        "data": {"setting": "x" * 500},
    }
