"""bench pull: from a pod's creation to its first useful answer, pulled whole and mounted lazily.

One node, one registry, one link of 1 Gbit/s with 2 ms. Each round starts every workload once in
every arm, on a node that has nothing of the image, neither on its disk nor in its page cache. To
come there its containerd and kubelet are restarted; a small pod of another image runs first in each
arm, as on every node that is in use, so that their restart is not what is measured:

    eager    containerd as it comes
    tuned    the node as it is, of an image without a lazy form: it is pulled and unpacked whole
    soci     containerd as it comes, with Debian's SOCI snapshotter and its index of the image
    lazy     the image's lazy form
    traced   the same, fetched ahead by the trace of an earlier start

    answer_s       from the pod's creation to its first useful answer
    again_s        the same once more where all of the image is there and was read (in `eager`): no
                   way to pull it could be sooner
    moved          bytes that came to the node until then, as a part of the packed image
    complete_s     until all of the image is on the node; of SOCI, until as many bytes came
    cpu_s          CPU time that the node spent until the answer
    daemons_mb     what the services of lazy images take then (Pss), ours or SOCI's
    cold_mb_s, warm_mb_s, cold_block_ms   reads of the complete image; of 4 KiB the last one

Times and sizes are medians of the rounds.
"""

from __future__ import annotations

import contextlib
import datetime
import http.client
import json
import time
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import kubernetes

from fleetfoot import artifacts
from fleetfoot.bench import cluster, plot, soci
from fleetfoot.bench.puller import ARMS, NODE, Node, Traffic, run_on
from fleetfoot.bench.report import Goal, Report, medians, now
from fleetfoot.errors import FleetfootError
from fleetfoot.images import build
from fleetfoot.lazyfs import nodes, trace
from fleetfoot.lazyfs.artifact import layers_of
from fleetfoot.lazyfs.building import converted
from fleetfoot.lazyfs.convert import attach, attach_traced
from fleetfoot.lazyfs.distribution import Repository
from fleetfoot.lazyfs.stores import Remote
from fleetfoot.paths import cache_dir
from fleetfoot.registry import Registry
from fleetfoot.stack.inventory import registry_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from fleetfoot.bench.cluster import BenchCluster
    from fleetfoot.lazyfs.artifact import Artifact

__all__ = ["ROUNDS", "WORKLOADS", "goals", "run"]

ROUNDS = 3
_PORT, _NAMESPACE = 8080, "default"
_POLL, _SECONDS = 0.1, 1800
_ASKING = 1.0  # seconds between two looks at a log, which stamps its lines: each costs the node
_SETTLED = 5.0  # seconds without another read: nodes tell each second
_PATIENCE = 300  # seconds within which SOCI fetches an image, if it does
_client: Any = kubernetes  # half of its functions have no types
# Serves, and asks itself until it answers: its port is open to its own pod alone.
_ASKED = """
/usr/local/bin/start-postgres &
until /usr/lib/postgresql/17/bin/psql --host=/tmp --no-psqlrc --tuples-only --quiet \
  --command='select 6 * 7' postgres 2>/dev/null; do sleep 0.1; done
wait
"""


@dataclass(frozen=True)
class Workload:
    """What is started.

    Attributes:
        name: Its name.
        image: Folder under images/.
        faster: How many times sooner it should answer in arm `traced` than in `eager`.
        moved: Part of the packed image that may have come by then.
        command: What is run; the image's own where it is empty.
        serves: Whether it answers over HTTP; else it prints a line with 42.
    """

    name: str
    image: str
    faster: float
    moved: float
    command: tuple[str, ...] = ()
    serves: bool = False


_SAID = "42"
_PRINTS = ("/usr/bin/python3", "-B", "-c", "print(6 * 7)")
WORKLOADS = (
    Workload("command", "spark", 20, 0.15, _PRINTS),
    Workload("postgres", "postgres", 5, 0.15, ("/bin/sh", "-c", _ASKED)),
    Workload("datascience", "datascience", 5, 0.15, serves=True),
    Workload("spark", "spark", 1, 0.40, serves=True),
)
_FIRST = Workload("first", "sample", 1, 1, _PRINTS)


@dataclass(frozen=True)
class _Pushed:
    """An image in the bench's registry."""

    reference: str
    size: int
    artifact: Artifact
    store: Remote
    path: Path


def run(
    target: Path,
    rounds: int = ROUNDS,
    workloads: Sequence[str] = (),
    progress: Callable[[str], None] = print,
) -> Report:
    """Measure, write the JSON file and the picture beside it.

    Args:
        target: The JSON file; the picture has its name and ends in .png.
        rounds: How often each workload is started in each arm.
        workloads: Names of those that are started; all if there are none.
        progress: Takes one line at a time for a person to follow.
    """
    started = now()
    chosen = [one for one in WORKLOADS if not workloads or one.name in workloads]
    measured: dict[str, list[dict[str, float]]] = {
        f"{one.name} {arm}": [] for one in chosen for arm in ARMS
    }
    with cluster.running(("serverless",), progress) as bench:
        scene = _Scene(bench, chosen, progress)
        setup = {
            "link": scene.node.link,
            "image_bytes": {one.name: scene.images[one.image, ""].size for one in chosen},
            **bench.sizes(),
        }
        for number in range(1, rounds + 1):
            for one in chosen:
                for arm in ARMS:
                    found = scene.measure(one, arm)
                    measured[f"{one.name} {arm}"].append(found)
                    told = ", ".join(f"{key} {value:.3g}" for key, value in found.items())
                    progress(f"round {number} of {rounds}, {one.name}, {arm}: {told}")
                # After each: it takes hours, and may be cut off.
                report = _report(measured, chosen, started, setup)
                report.write(target)
    answers, moved = (
        {one.name: {arm: report.arms[f"{one.name} {arm}"][kind] for arm in ARMS} for one in chosen}
        for kind in ("answer_s", "moved")
    )
    title = f"From a pod's creation to its first answer, median of {rounds}"
    plot.pulls(target.with_suffix(".png"), answers, moved, title)
    return report


def _report(
    measured: Mapping[str, list[dict[str, float]]],
    chosen: Sequence[Workload],
    started: str,
    setup: Mapping[str, Any],
) -> Report:
    """Return what is known so far: of workloads that were measured in each arm."""
    done = [one for one in chosen if all(measured[f"{one.name} {arm}"] for arm in ARMS)]
    rounds = {f"{one.name} {arm}": measured[f"{one.name} {arm}"] for one in done for arm in ARMS}
    arms = {arm: medians(found) for arm, found in rounds.items()}
    most = max(len(found) for found in rounds.values())
    setup = {"rounds": most, **setup}
    return Report("pull", arms, ratios(arms, done), rounds, started, setup, goals(arms, done))


def ratios(
    arms: Mapping[str, Mapping[str, float]], workloads: Sequence[Workload]
) -> dict[str, float]:
    """Return what arms are to each other; ours is with a trace where no arm is named."""
    found = {}
    for one in workloads:
        measured = {arm: arms[f"{one.name} {arm}"] for arm in ARMS}
        eager, ours = measured["eager"], measured["traced"]
        for arm in ("eager", "tuned", "soci"):
            found[f"{one.name}.{arm}_over_lazy"] = measured[arm]["answer_s"] / ours["answer_s"]
        untraced = measured["lazy"]["answer_s"]
        found[f"{one.name}.eager_over_untraced"] = eager["answer_s"] / untraced
        found[f"{one.name}.eager_over_again"] = eager["answer_s"] / eager["again_s"]
        found[f"{one.name}.bytes_fraction"] = ours["moved"]
        if "cold_mb_s" in ours:
            found[f"{one.name}.complete_read"] = eager["cold_mb_s"] / ours["cold_mb_s"]
            found[f"{one.name}.warm_read"] = eager["warm_mb_s"] / ours["warm_mb_s"]
    return found


def goals(
    arms: Mapping[str, Mapping[str, float]], workloads: Sequence[Workload]
) -> dict[str, Goal]:
    """Return what should be: sooner by a factor, with a part of the bytes, and as fast later."""
    found = {}
    for one in workloads:
        eager, ours = arms[f"{one.name} eager"], arms[f"{one.name} traced"]
        sooner = eager["answer_s"] / ours["answer_s"]
        found[f"{one.name}_times_sooner"] = Goal(one.faster, sooner, at_least=True)
        lazy = arms[f"{one.name} lazy"]["answer_s"]
        found[f"{one.name}_lazy_times_sooner"] = Goal(1, eager["answer_s"] / lazy, at_least=True)
        other = arms[f"{one.name} soci"]["answer_s"]
        found[f"{one.name}_sooner_than_soci"] = Goal(1, other / ours["answer_s"], at_least=True)
        found[f"{one.name}_complete"] = Goal(1, ours["complete_s"] / eager["complete_s"])
        found[f"{one.name}_moved"] = Goal(one.moved, ours["moved"])
        if "warm_mb_s" in ours:
            warm = ours["warm_mb_s"] / eager["warm_mb_s"]
            found[f"{one.name}_warm_reads"] = Goal(0.95, warm, at_least=True)
            cold = eager["cold_mb_s"] / ours["cold_mb_s"]
            found[f"{one.name}_cold_reads"] = Goal(1.3, cold)
    worst = max(
        arms[f"{one.name} {arm}"]["daemons_mb"] for one in workloads for arm in ("lazy", "traced")
    )
    found["daemons_mb"] = Goal(80, worst)
    return found


class _Scene:
    """The node, and images in the registry: each with a lazy form, and again with a trace."""

    def __init__(
        self, bench: BenchCluster, chosen: Sequence[Workload], progress: Callable[[str], None]
    ) -> None:
        self._bench, self._progress, self._count = bench, progress, 0
        address = f"{bench.control}:5000"
        self._registry = Registry(cluster.STACK, registry_address(cluster.STACK), address)
        # It would give a lazy form to what shall have none.
        run_on(bench.control, "systemctl stop fleetfoot-lazy-converter")
        self.images = {
            (image, suffix): self._push(image, suffix)
            for image in dict.fromkeys(one.image for one in (_FIRST, *chosen))
            for suffix in ("", *(f"-{one.name}" for one in chosen if one.image == image))
        }
        # In repositories of their own: each snapshotter finds what is attached for it alone.
        self._indexed = {
            image: self._registry.push(pushed.path, f"{image}-soci")
            for (image, suffix), pushed in self.images.items()
            if not suffix
        }
        for image, reference in self._indexed.items():
            progress(f"{image}: making SOCI's index")
            soci.index(reference, bench.control, self._registry.access(), progress)
        progress("starting the node")
        self.node = Node(bench)
        progress(f"link: {json.dumps(self.node.link)}")
        _client.config.load_kube_config(str(bench.cluster.kubeconfig))
        self._api = _client.client.CoreV1Api()
        soci.install(self.node, self._registry.access(), self._registry.name, progress)
        for one in chosen:
            self._trace(one)

    def measure(self, one: Workload, arm: str) -> dict[str, float]:
        """Start a workload on a node that knows nothing of it."""
        self.node.fresh(arm)
        with self._pod(_FIRST, self._reference(_FIRST, arm)) as name:
            self._answer(_FIRST, name, 0)
            if arm in {"lazy", "traced"}:
                self.node.wait_complete()  # it would go on beside what is measured
        image, reference = self.images[one.image, ""], self._reference(one, arm)
        ahead = self.node.clock()
        spent = self.node.busy()
        with Traffic(self._bench) as traffic:
            begun = time.time()
            with self._pod(one, reference) as name:
                answer = self._answer(one, name, ahead)
                found = {
                    "answer_s": answer - begun,
                    "moved": traffic.until(begun, answer) / image.size,
                    "cpu_s": self.node.busy() - spent,
                }

                def came() -> bool:
                    return traffic.until(begun, time.time()) >= image.size

                complete = self._complete(arm, answer, came)
                if arm in {"soci", "lazy", "traced"}:
                    found["daemons_mb"] = self.node.memory(arm)
                if complete:
                    found["complete_s"] = complete - begun
                    if one.serves:
                        if arm in {"lazy", "traced"}:
                            self.node.wait_turned()
                        found |= self.node.reads(self._container(name))
        if arm == "eager":
            found["again_s"] = self._again(one, reference)
        return found

    def _again(self, one: Workload, reference: str) -> float:
        took = 0.0
        for _ in range(2):  # the first reads all of it from the disk
            ahead, begun = self.node.clock(), time.time()
            with self._pod(one, reference) as name:
                took = self._answer(one, name, ahead) - begun
        return took

    def _reference(self, one: Workload, arm: str) -> str:
        """Return what a workload is started from in an arm."""
        if arm in {"tuned", "soci"}:  # nothing of ours is attached there
            return self._indexed[one.image]
        traced = f"-{one.name}" if arm == "traced" else ""
        return self.images.get((one.image, traced), self.images[one.image, ""]).reference

    def _push(self, name: str, suffix: str) -> _Pushed:
        """Push an image and its lazy form, which is another's where the repository is."""
        built = build.build(
            name, cache=cache_dir(), artifacts=artifacts.directory(), progress=self._progress
        )
        self._progress(f"{name}{suffix}: pushing it and its lazy form")
        repository = f"{name}{suffix}"
        reference = self._registry.push(built.path, repository)
        store = Remote(Repository(self._registry.access(), repository))
        manifest, kind = store.manifest(reference.partition("@")[2])
        made = converted(store, manifest, kind, self._progress)
        attach(store, made)
        size = sum(layer.size for layer in layers_of(manifest))
        return _Pushed(reference, size, made.artifact, store, built.path)

    def _trace(self, one: Workload) -> None:
        """Start it once, and keep what it read with its own lazy form."""
        self._progress(f"{one.name}: recording what it reads")
        self.node.fresh("lazy")
        self.node.keep_to_reads()  # what was completed meanwhile would be read unseen
        image = self.images[one.image, f"-{one.name}"]
        with self._pod(one, image.reference) as name:
            self._answer(one, name, self.node.clock())
            layers = [layer.name for layer in image.artifact.layers]
            read, before = nodes.touched(cluster.STACK, NODE, layers), None
            while read != before:  # the node tells it a little later
                time.sleep(_SETTLED)
                read, before = nodes.touched(cluster.STACK, NODE, layers), read
        attach_traced(image.store, image.artifact, trace.dump(read))

    @contextlib.contextmanager
    def _pod(self, one: Workload, reference: str) -> Iterator[str]:
        self._count += 1
        name = f"{one.name}-{self._count}"
        container: dict[str, Any] = {
            "name": one.name,
            "image": reference,
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108  (the pod's own)
        }
        if one.command:
            container["command"] = list(one.command)
        pod = {
            "metadata": {"name": name},
            "spec": {
                "nodeName": NODE,
                # Its answer is asked for from outside, where pods' own addresses are not known.
                "hostNetwork": True,
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 1,
                "automountServiceAccountToken": False,
                "volumes": [{"name": "tmp", "emptyDir": {}}],
                "containers": [container],
            },
        }
        self._api.create_namespaced_pod(_NAMESPACE, pod)
        try:
            yield name
        finally:
            self._api.delete_namespaced_pod(name, _NAMESPACE)
            self._wait(lambda: not self._pods(name), f"the end of pod {name}")

    def _answer(self, one: Workload, pod: str, ahead: float) -> float:
        """Return when the first useful answer came, in seconds since the epoch."""
        if one.serves:
            return float(self._wait(self._served, f"an answer of {one.name}"))
        line = str(self._wait(lambda: self._printed(pod), f"a line of {one.name}", _ASKING))
        stamp = line.partition(" ")[0]
        return (
            datetime.datetime.fromisoformat(f"{stamp[:26].rstrip('Z')}+00:00").timestamp() - ahead
        )

    def _served(self) -> float:
        url = f"http://{self.node.address}:{_PORT}/"
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:
                json.load(reply)
        except (OSError, ValueError, http.client.HTTPException):  # not useful yet
            return 0.0
        return time.time()

    def _printed(self, pod: str) -> str:
        try:
            said = self._api.read_namespaced_pod_log(pod, _NAMESPACE, timestamps=True)
        except kubernetes.client.ApiException:  # it has not begun
            return ""
        lines = str(said).splitlines()
        answer = next((line for line in lines if line.partition(" ")[2].strip() == _SAID), "")
        if not answer and self._pods(pod)[0].status.phase == "Failed":
            raise FleetfootError(
                f"{pod} ended without an answer: {said}", "nothing can be compared"
            )
        return answer

    def _complete(self, arm: str, answer: float, came: Callable[[], bool]) -> float:
        """Return when all of the image was there: what is pulled whole is, before it starts.

        SOCI does not say it: then all of its bytes came, or it is not known (0).
        """
        if arm == "soci":
            until = answer + _PATIENCE
            while time.time() < until and not came():
                time.sleep(_POLL)
            return time.time() if came() else 0.0
        if arm not in {"lazy", "traced"}:
            return answer
        self.node.wait_complete()
        return time.time()

    def _container(self, pod: str) -> str:
        """Return containerd's id of a pod's container."""
        (status,) = self._pods(pod)[0].status.container_statuses
        return str(status.container_id).rpartition("/")[2]

    def _pods(self, name: str) -> list[Any]:
        selector = f"metadata.name={name}"
        return list(self._api.list_namespaced_pod(_NAMESPACE, field_selector=selector).items)

    @staticmethod
    def _wait(check: Callable[[], Any], what: str, pause: float = _POLL) -> Any:
        deadline = time.monotonic() + _SECONDS
        while not (found := check()):
            if time.monotonic() > deadline:
                raise FleetfootError(f"{what} did not come within {_SECONDS} s", "it was given up")
            time.sleep(pause)
        return found
