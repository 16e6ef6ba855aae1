"""The cluster of bench apiserver: its nodes and pods, and what clients of both sides meet on it."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fleetfoot.bench import cluster
from fleetfoot.bench.load import Side, count, node
from fleetfoot.bench.processes import Usage
from fleetfoot.bench.windows import plain, turns
from fleetfoot.cluster import Cluster
from fleetfoot.errors import FleetfootError
from fleetfoot.machines import ssh
from fleetfoot.shell import run as run_program
from fleetfoot.stack import sides
from fleetfoot.stack.inventory import API_PORTS, api_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractContextManager

    from fleetfoot.bench.cluster import BenchCluster
    from fleetfoot.bench.load import Generator, Running
    from fleetfoot.bench.windows import Window

__all__ = ["BURST", "PERIOD", "PODS_OF_A_NODE", "RATE", "WINDOW", "Scene"]

PODS_OF_A_NODE = 4  # that stand there all the time
BURST, PERIOD = 5, 4  # pods an engine makes at once, and how often
RATE = 50  # requests an online client sends a second
WINDOW = 3 * PERIOD
_PODS_AT_MOST, _OBJECTS = 110, 100  # of a node, as kubelets have it; that online reads
_START_SECONDS = 5  # of k6
# Seconds of a window that do not count: what is left of one load ends, the next one begins.
_LEADS = {"idle": 8, "storm": PERIOD, "saturated": PERIOD}
_READY_SECONDS, _PATIENCE_SECONDS = 180, 120
# Before whatever else the host does; the clients that are measured most closely come first.
_NICE = {"online": -15, "nodes": -10, "offline": -5}
_ONLINE_NAMESPACE = "online"


@dataclass(frozen=True)
class _Play:
    """Clients of both sides at work."""

    windows: list[Window]
    online: Running
    offline: Running


class Scene:
    """The cluster as the arms find it: nodes, standing pods, clients of both sides.

    Args:
        bench: The cluster.
        generator: Starts clients.
        cpu: The host's CPU that the control machine is kept on.
    """

    def __init__(self, bench: BenchCluster, generator: Generator, cpu: int) -> None:
        self._bench, self._generator, self._cpu = bench, generator, cpu
        self._split = True
        urls = {group: f"https://{bench.control}:{port}" for group, port in API_PORTS.items()}
        operators = ["fleetfoot:operators"]
        self._nodes = generator.client(
            urls["online"], "kubernetes", "fleetfoot:bench-nodes", ["system:nodes", *operators]
        )
        self._online = generator.client(
            urls["online"], "kubernetes", "fleetfoot:bench-online", operators
        )
        self._engines = {
            group: generator.client(url, authority, "fleetfoot:bench-engine", [sides.OFFLINE_GROUP])
            for (group, url), authority in zip(
                urls.items(), ("kubernetes", "kubernetes-offline"), strict=True
            )
        }

    def playing(self) -> AbstractContextManager[None]:
        """Play every node."""
        return self._generator.nodes(self._nodes, nice=_NICE["nodes"])

    def fill(self, nodes: int) -> None:
        """Make nodes, the pods that stand on them, and what the online client reads."""
        self._bench.apply(
            [
                *sides.admission(api_url(cluster.STACK, "offline")),
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _ONLINE_NAMESPACE}},
            ]
        )
        self._bench.make_workplace()
        made = [("/api/v1/nodes", node(n, _PODS_AT_MOST)) for n in range(nodes)]
        self._generator.fill(self._nodes, made)
        place = f"/api/v1/namespaces/{sides.OFFLINE_NAMESPACE}/pods"
        count = nodes * PODS_OF_A_NODE
        pods = [(place, _pod(n, n % nodes)) for n in range(count)]
        place = f"/api/v1/namespaces/{_ONLINE_NAMESPACE}/configmaps"
        objects = [(place, _config_map(n)) for n in range(_OBJECTS)]
        self._wait("the nodes are Ready", lambda: self._ready_nodes() >= nodes)
        self._generator.fill(self._online, [*pods, *objects])
        self._wait("the pods run", lambda: self._pods("status.phase=Running") >= count)

    def enter(self, *, split: bool, lanes: bool) -> None:
        """Make the cluster what an arm says.

        Args:
            split: Whether engines have an apiserver of their own.
            lanes: Whether our lanes are there.
        """
        self._ssh("systemctl", "start" if split else "stop", "kube-apiserver@offline")
        if lanes:
            self._bench.apply(sides.lanes())
        else:
            names = [f"{each['kind']}/{each['metadata']['name']}" for each in sides.lanes()]
            self._bench.cluster.kubectl("delete", "--ignore-not-found", *reversed(names))
        if split:
            self._wait("the offline apiserver is ready", Cluster(cluster.STACK, "offline").answers)
        self._split = split

    def storm_over_idle(self, engines: int, cycles: int) -> float:
        """Return by what a storm multiplies the online p99.

        Args:
            engines: Its size.
            cycles: Windows of each phase.
        """
        leads = {phase: _LEADS[phase] for phase in ("idle", "storm")}
        online, _ = self._answers(self._play(leads, engines, cycles))
        p99 = {phase: Side.parse(online, phase, cycles * WINDOW).p99 for phase in leads}
        return p99["storm"] / p99["idle"]

    def measure(self, engines: int, cycles: int) -> dict[str, float]:
        """Return the metrics of an arm, idle and under both storms.

        Args:
            engines: Size of the storms.
            cycles: Windows of each phase.
        """
        leaders = self._leaders()
        play = self._play(_LEADS, engines, cycles)
        usage = self._used(window for window in play.windows if window.phase == "storm")
        metrics, work = self._answers(play)
        seconds = cycles * WINDOW
        idle, online, full_online = (Side.parse(metrics, phase, seconds) for phase in _LEADS)
        offline, full_offline = (
            Side.parse(work, phase, seconds) for phase in ("storm", "saturated")
        )
        return {
            "idle_p50_ms": idle.p50,
            "idle_p99_ms": idle.p99,
            **_side("online", online),
            **_side("offline", offline),
            "offline_pods": offline.pods,
            "offline_watch_error_rate": offline.watch_error_rate,
            "late_offline_requests": count(work, "late"),
            **usage,
            "leader_changes": float(sum(self._leaders()) - sum(leaders)),
            "saturated_online_p99_ms": full_online.p99,
            "saturated_online_error_rate": full_online.error_rate,
            "saturated_offline_throughput": full_offline.throughput,
            "saturated_offline_error_rate": full_offline.error_rate,
            "storm_over_idle_p99": online.p99 / idle.p99,
        }

    def _play(self, leads: Mapping[str, float], engines: int, cycles: int) -> _Play:
        """Let both sides work."""
        windows = turns(leads, WINDOW, cycles, time.time() + _START_SECONDS)
        client = self._engines["offline" if self._split else "online"]
        given = plain(windows)
        offline = self._generator.start(
            "offline",
            client,
            nice=_NICE["offline"],
            NAMESPACE=sides.OFFLINE_NAMESPACE,
            ENGINES=engines,
            BURST=BURST,
            PERIOD=PERIOD,
            WINDOWS=given,
        )
        online = self._generator.start(
            "online",
            self._online,
            nice=_NICE["online"],
            NAMESPACE=_ONLINE_NAMESPACE,
            OBJECTS=_OBJECTS,
            RATE=RATE,
            WINDOWS=given,
        )
        return _Play(windows, online, offline)

    def _answers(self, play: _Play) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the metrics of online and offline at the end of both."""
        patience = play.windows[-1].end - time.time() + _PATIENCE_SECONDS
        found = play.online.metrics(patience), play.offline.metrics(patience)
        self._rest()
        return found

    def _used(self, windows: Iterable[Window]) -> dict[str, float]:
        """Return what the machine used in windows to come: seconds in all, the most memory."""
        parts: dict[str, list[float]] = defaultdict(list)
        for window in windows:
            _until(window.counts)
            usage = Usage(cluster.STACK, cluster.CONTROL, self._cpu)
            _until(window.end)
            for name, value in usage.since().items():
                parts[name].append(value)
        return {
            name: max(each) if name.endswith("_mib") else sum(each) for name, each in parts.items()
        }

    def _rest(self) -> None:
        """Wait until nothing of the storm is left."""
        label = "--selector=engine"
        self._bench.cluster.kubectl(
            "delete", "pods", f"--namespace={sides.OFFLINE_NAMESPACE}", label, "--wait=false"
        )
        self._wait("the storm's pods are gone", lambda: self._pods("", label) == 0)

    def _leaders(self) -> list[int]:
        """How often each of the leases changed hands so far."""
        leases = [
            self._bench.cluster.get("lease", name, "--namespace=kube-system")["spec"]
            for name in ("kube-scheduler", "kube-controller-manager")
        ]
        return [int(lease.get("leaseTransitions", 0)) for lease in leases]

    def _ready_nodes(self) -> int:
        path = "jsonpath={.items[*].status.conditions[?(@.type=='Ready')].status}"
        return self._bench.cluster.kubectl("get", "nodes", "-o", path).split().count("True")

    def _pods(self, fields: str, *options: str) -> int:
        place = f"--namespace={sides.OFFLINE_NAMESPACE}"
        found = self._bench.cluster.kubectl(
            "get", "pods", place, f"--field-selector={fields}", "-o", "name", *options
        )
        return len(found.split())

    def _ssh(self, *command: str) -> None:
        run_program([*ssh.command(cluster.STACK), f"root@{self._bench.control}", *command])

    def _wait(self, what: str, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not true():
            if time.monotonic() > deadline:
                raise FleetfootError(
                    f"it did not come true within {_READY_SECONDS} s that {what}",
                    "the cluster is not what should be measured",
                    "run it again while nothing else runs on this host, or with fewer --nodes",
                )
            time.sleep(1)


def _until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.time()))


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
