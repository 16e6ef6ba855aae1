"""bench failover: a killed leader, a killed apiserver, and how soon the next pod is bound.

A control plane of several machines (the shape of Pulumi.ha.yaml) under load from both sides. Each
round kills one process after the other with SIGKILL:

    idle        nothing is killed: what a pod waits for by itself
    scheduler   the scheduler that leads
    apiserver   an online apiserver: the one on the machine of the scheduler that leads

    next_bound_s   from the kill to the first binding of a pod that was made after it
    resent         online requests that failed and were sent again
    failed         online requests that failed in spite of that
    dropped        online requests that nobody was free to send, for all waited for answers

Times are medians of the rounds, counts are added up. Arm `ha` says what the goals speak of: the
longest that a pod waited after each kind of kill, and what became of all online requests.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import kubernetes
import urllib3

from fleetfoot.bench import cluster, plot
from fleetfoot.bench.load import Generator, count, node
from fleetfoot.bench.report import Goal, Report, now, summary
from fleetfoot.bench.windows import plain, turns
from fleetfoot.errors import FleetfootError
from fleetfoot.machines import ssh
from fleetfoot.shell import run as run_program
from fleetfoot.stack import sides
from fleetfoot.stack.inventory import API_PORTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from fleetfoot.bench.cluster import BenchCluster
    from fleetfoot.bench.load import Client

__all__ = ["ARMS", "ROUNDS", "arms_of", "goals", "run"]

ROUNDS = 3
ARMS = ("idle", "scheduler", "apiserver")
_NODES, _PODS_AT_MOST = 20, 1000  # of a node
_OBJECTS, _RATE, _ATTEMPTS = 100, 50, 6
_ENGINES, _BURST, _PERIOD = 2, 5, 2
_SECONDS, _WATCHED = 25, 15
_BEFORE = 249  # the online request, a write, that is answered before anything is killed
_EVERY = 0.1
_NAMESPACE = "online"
_client: Any = kubernetes  # half of its functions have no types
# How calls fail while an apiserver is away.
_AWAY = (kubernetes.client.ApiException, urllib3.exceptions.HTTPError, OSError)
_READY_SECONDS = 120
_BOUND_SECONDS = 5.0  # within which the next pod should be bound
_COUNTS = ("online_requests", "resent", "failed", "dropped")


def run(target: Path, rounds: int = ROUNDS, progress: Callable[[str], None] = print) -> Report:
    """Measure, write the JSON file and the picture beside it.

    Args:
        target: The JSON file; the picture has its name and ends in .png.
        rounds: How often each process is killed.
        progress: Takes one line at a time for a person to follow.
    """
    started = now()
    measured: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    with cluster.running((), progress, changes=_changes()) as bench:
        scene = _Scene(bench, Generator(cluster.STACK, (), progress))
        with scene.generator.nodes(scene.nodes), scene.watching():
            scene.fill()
            for number in range(1, rounds + 1):
                for arm in ARMS:
                    metrics = scene.measure(arm)
                    measured[arm].append(metrics)
                    told = ", ".join(f"{key} {value:.3g}" for key, value in metrics.items())
                    progress(f"round {number} of {rounds}, {arm}: {told}")
    arms = arms_of(measured)
    ratios = {
        f"{arm}_to_idle_next_bound": arms[arm]["next_bound_s"] / arms["idle"]["next_bound_s"]
        for arm in ARMS[1:]
    }
    setup = {
        "nodes": _NODES,
        "online_rate": _RATE,
        "offline_engines": _ENGINES,
        "rounds": rounds,
        "attempts": _ATTEMPTS,
        "etcd_data": "disk",
        **bench.sizes(),
    }
    report = Report("failover", arms, ratios, measured, started, setup, goals(arms))
    report.write(target)
    title = f"From a kill to the next pod that is bound, {rounds} rounds"
    plot.failover(target.with_suffix(".png"), measured, _BOUND_SECONDS, title)
    return report


def arms_of(
    measured: Mapping[str, Sequence[Mapping[str, float]]],
) -> dict[str, dict[str, float]]:
    """Return the metrics of each arm, and of all together (`ha`), from those of the rounds."""
    arms = {
        arm: {
            **summary(found, sums=_COUNTS),
            "worst_next_bound_s": max(one["next_bound_s"] for one in found),
        }
        for arm, found in measured.items()
    }
    killed = {f"{arm}_seconds": arms[arm]["worst_next_bound_s"] for arm in ARMS[1:]}
    online = {
        f"{key}_online_requests": sum(found[key] for found in arms.values())
        for key in ("failed", "dropped")
    }
    return {**arms, "ha": {**killed, **online}}


def goals(arms: Mapping[str, Mapping[str, float]]) -> dict[str, Goal]:
    """Return what should be: pods are soon bound again, and clients that ask again succeed."""
    found = arms["ha"]
    worst = max(found[f"{arm}_seconds"] for arm in ARMS[1:])
    return {
        "worst_next_bound_seconds": Goal(_BOUND_SECONDS, worst),
        **{
            key: Goal(0, found[key])
            for key in ("failed_online_requests", "dropped_online_requests")
        },
    }


def _changes() -> dict[str, Any]:
    """The control pools of the stack `ha`, and what its apiservers may use."""
    pools = cluster.shipped("ha", "pools")
    return {
        "pools": [pool for pool in pools if pool["groups"] != ["workers"]],
        "apiservers": cluster.shipped("ha", "apiservers"),
    }


class _Scene:
    """The cluster: simulated nodes, clients of both sides, and somebody who makes pods."""

    def __init__(self, bench: BenchCluster, generator: Generator) -> None:
        self.bench, self.generator = bench, generator
        machines = {m.spec.name: m for m in bench.fleet.all()}
        self._addresses = {name: machine.address for name, machine in machines.items()}
        self._fronts = [
            machine.address for machine in machines.values() if "api-online" in machine.spec.aliases
        ]
        online, offline = (
            f"https://{self._fronts[0]}:{API_PORTS[group]}" for group in ("online", "offline")
        )
        operators = ["fleetfoot:operators"]
        # Two identities: nodes have a lane of their own, and online must not be let through there.
        self.nodes: Client = generator.client(
            online, "kubernetes", "fleetfoot:bench-nodes", ["system:nodes", *operators]
        )
        self._online = generator.client(online, "kubernetes", "fleetfoot:bench-online", operators)
        self._engine = generator.client(
            offline, "kubernetes-offline", "fleetfoot:bench-engine", [sides.OFFLINE_GROUP]
        )
        _client.config.load_kube_config(str(bench.cluster.kubeconfig))
        self._api = _client.client.CoreV1Api()
        self._bound: dict[str, float] = {}
        self._made = 0

    def fill(self) -> None:
        """Make nodes, and what the online client reads."""
        nodes = [("/api/v1/nodes", node(n, _PODS_AT_MOST)) for n in range(_NODES)]
        self.generator.fill(self.nodes, nodes)
        self.bench.apply([_namespace(), *sides.lanes()])
        self.bench.make_workplace()
        place = f"/api/v1/namespaces/{_NAMESPACE}/configmaps"
        objects: list[tuple[str, dict[str, Any]]] = [
            (place, {"metadata": {"name": f"online-{n}"}, "data": {}}) for n in range(_OBJECTS)
        ]
        self.generator.fill(self._online, objects)
        account = ["wait", "--for=create", f"--namespace={_NAMESPACE}", "serviceaccount/default"]
        self.bench.cluster.kubectl(*account, f"--timeout={_READY_SECONDS}s")
        self._make_pod()
        deadline = time.monotonic() + _READY_SECONDS
        while not self._bound:
            if time.monotonic() > deadline:
                raise FleetfootError(
                    f"no pod was bound within {_READY_SECONDS} s, though nothing was killed",
                    "there is nothing to compare with",
                    "run it again while nothing else runs on this host",
                )
            time.sleep(_EVERY)

    def measure(self, arm: str) -> dict[str, float]:
        """Return the metrics of one kill."""
        storm = self.generator.start(
            "offline",
            self._engine,
            NAMESPACE=sides.OFFLINE_NAMESPACE,
            ENGINES=_ENGINES,
            BURST=_BURST,
            PERIOD=_PERIOD,
            WINDOWS=plain(turns({"storm": 0}, _SECONDS, 1, time.time())),
        )
        clients = self.generator.start(
            "failover",
            self._online,
            URLS=",".join(f"https://{front}:{API_PORTS['online']}" for front in self._fronts),
            NAMESPACE=_NAMESPACE,
            OBJECTS=_OBJECTS,
            RATE=_RATE,
            SECONDS=_SECONDS,
            ATTEMPTS=_ATTEMPTS,
        )
        self._wait_for_request(_BEFORE)
        killed = self._kill(arm)
        next_bound = self._next_bound(killed)
        found = clients.metrics(_SECONDS + 60)
        storm.metrics(_SECONDS + 60)
        self._tidy()
        failed = found["failed"]["values"]
        return {
            "next_bound_s": next_bound,
            "online_requests": float(failed["passes"] + failed["fails"]),
            "resent": count(found, "resent"),
            "failed": float(failed["passes"]),
            "dropped": count(found, "dropped_iterations"),
            "online_p99_ms": found["latency"]["values"]["p(99)"],
            "online_max_ms": found["latency"]["values"]["max"],
        }

    def _wait_for_request(self, number: int) -> None:
        """Wait until the online client has written what it writes with a request.

        Raises:
            FleetfootError: It did not.
        """
        name, deadline = f"online-{number % _OBJECTS}", time.monotonic() + _SECONDS
        while time.monotonic() < deadline:
            found = self._api.read_namespaced_config_map(name, _NAMESPACE)
            if (found.data or {}).get("count") == str(number):
                return
            time.sleep(_EVERY)
        raise FleetfootError(
            f"the online client was not at its request {number} within {_SECONDS} s",
            "a kill would meet no load, so none was made",
            "run it again while nothing else runs on this host",
        )

    def _kill(self, arm: str) -> float:
        """Kill the process; return when."""
        lease = self.bench.cluster.get("lease", "kube-scheduler", "--namespace=kube-system")
        machine = lease["spec"]["holderIdentity"].split("_")[0]
        unit = {"scheduler": "kube-scheduler", "apiserver": "kube-apiserver@online"}.get(arm)
        killed = time.monotonic()  # before it travels there, rather than after
        if unit:
            target = f"root@{self._addresses[machine]}"
            kill = ["systemctl", "kill", "--signal=SIGKILL", unit]
            run_program([*ssh.command(cluster.STACK), target, *kill])
        return killed

    def _next_bound(self, killed: float) -> float:
        """Make pods until one that was made after the kill is bound; return seconds.

        Raises:
            FleetfootError: None was.
        """
        first = self._made
        while time.monotonic() < killed + _WATCHED:
            self._make_pod()
            # A copy, for the watch goes on.
            times = [at for name, at in dict(self._bound).items() if _number(name) >= first]
            if times:
                return min(times) - killed
            time.sleep(_EVERY)
        raise FleetfootError(
            f"no pod was bound within {_WATCHED} s of the kill",
            "this is no time that could be compared: the control plane did not recover",
            "see why no scheduler led (`journalctl -u kube-scheduler` on the control machines of"
            " a stack of this shape), then run it again",
        )

    def _make_pod(self) -> None:
        name = f"next-{self._made}"
        self._made += 1
        container = {"name": "task", "image": "batch/task"}
        body = {"metadata": {"name": name}, "spec": {"containers": [container]}}
        # What fails while an apiserver is away is made by the next call.
        with contextlib.suppress(*_AWAY):
            self._api.create_namespaced_pod(_NAMESPACE, body, _request_timeout=2)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Note when pods are bound, for as long as the block takes."""
        done = threading.Event()

        def look() -> None:
            api = _client.client.CoreV1Api()
            while not done.is_set():
                watch = _client.watch.Watch()
                with contextlib.suppress(*_AWAY):
                    for event in watch.stream(
                        api.list_namespaced_pod, _NAMESPACE, timeout_seconds=_SECONDS
                    ):
                        pod = event["object"]
                        if pod.spec.node_name:
                            self._bound.setdefault(pod.metadata.name, time.monotonic())
                        if done.is_set():
                            break
                done.wait(_EVERY)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _tidy(self) -> None:
        for place in (_NAMESPACE, sides.OFFLINE_NAMESPACE):
            self.bench.cluster.kubectl("delete", "pods", "--all", f"--namespace={place}")
        deadline = time.monotonic() + _READY_SECONDS
        while not self.bench.cluster.answers() and time.monotonic() < deadline:
            time.sleep(1)


def _number(name: str) -> int:
    return int(name.rpartition("-")[2])


def _namespace() -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _NAMESPACE}}
