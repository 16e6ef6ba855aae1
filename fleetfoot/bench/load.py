"""Load on a bench's cluster: kwok plays its nodes, k6 its clients (what they do stands in k6/)."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleetfoot import artifacts, pki
from fleetfoot.bench.cluster import on_cpus
from fleetfoot.errors import FleetfootError
from fleetfoot.kubeconfig import kubeconfig
from fleetfoot.paths import StackPaths, private_dir, write_private

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

__all__ = ["Client", "Generator", "Running", "Side", "count", "node"]

_SCRIPTS = Path(__file__).parent / "k6"
_STAGES = Path(__file__).parent / "nodes.yaml"
_LEASE_SECONDS = 40  # as kubelets have it


@dataclass(frozen=True)
class Client:
    """Somebody who asks apiservers.

    Attributes:
        url: Whom it asks.
        pair: Its certificate and key, one file.
    """

    url: str
    pair: Path


@dataclass(frozen=True)
class Side:
    """What clients of one side met.

    Attributes:
        p50: Median time to an answer, in ms.
        p99: The time, in ms, that 1 % of the answers took longer than.
        error_rate: Part of the requests that failed or could not even be sent in time.
        throughput: Successful requests a second.
        pods: Pods made a second.
        watch_error_rate: Part of the watches that failed.
        p99_of: The same by operation.
    """

    p50: float
    p99: float
    error_rate: float
    throughput: float
    pods: float
    watch_error_rate: float
    p99_of: dict[str, float]

    @classmethod
    def parse(cls, metrics: Mapping[str, Any], phase: str, seconds: float) -> Side:
        """Return it from k6's summary.

        Args:
            metrics: Metric to its `values`.
            phase: What is asked for; requests that could not be sent are not known by phase, and
                count in each.
            seconds: How long it was measured.

        Raises:
            FleetfootError: Nothing was answered.
        """
        found = {name: metric["values"] for name, metric in metrics.items()}
        of = f"phase:{phase}"
        latency, failed = found.get(f"latency{{{of}}}"), found.get(f"failed{{{of}}}")
        if not latency or not failed or not latency["count"]:
            raise FleetfootError(
                f"no request of phase {phase} was answered while it was measured",
                "there is nothing to compare",
                "run it again with more --seconds",
            )
        dropped = count(metrics, "dropped_iterations")
        good = latency["count"] * (1 - failed["rate"])
        return cls(
            p50=latency["p(50)"],
            p99=latency["p(99)"],
            error_rate=1 - good / (latency["count"] + dropped),
            throughput=good / seconds,
            pods=count(metrics, f"pods{{{of}}}") / seconds,
            watch_error_rate=found.get(f"watches_failed{{{of}}}", {}).get("rate", 0.0),
            p99_of={
                name.removeprefix(start).removesuffix("}"): values["p(99)"]
                for name, values in found.items()
                if name.startswith(start := f"latency{{{of},op:") and values["count"]
            },
        )


@dataclass(frozen=True)
class Running:
    """A run of k6.

    Attributes:
        process: Its process.
        summary: The file that it writes at its end.
        log: What it said.
    """

    process: subprocess.Popen[bytes]
    summary: Path
    log: Path

    def metrics(self, timeout: float) -> dict[str, Any]:
        """Wait for its end; return its metrics.

        Raises:
            FleetfootError: It failed; the message carries the end of what it said.
        """
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if code or not self.summary.exists():
            raise FleetfootError(
                f"k6 ended with status {code}: {self.log.read_text(errors='replace')[-2000:]}",
                "nothing was measured",
                "mend what it names; where it names nothing, the host may have too little memory",
            )
        metrics: dict[str, Any] = json.loads(self.summary.read_text())
        return metrics


def count(metrics: Mapping[str, Any], name: str) -> float:
    """Return a counter of k6's summary, which has none that nothing was added to.

    Args:
        metrics: Metric to its `values`.
        name: The counter's, with its tags.
    """
    return float(metrics.get(name, {}).get("values", {}).get("count", 0))


def node(number: int, pods: int) -> dict[str, Any]:
    """Return a node to be played.

    Args:
        number: Of the node, in its name.
        pods: How many pods it takes.
    """
    size = {"cpu": "32", "memory": "128Gi", "pods": str(pods)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"node-{number}"},
        "status": {"allocatable": size, "capacity": size},
    }


class Generator:
    """Runs clients and nodes of one stack on CPUs of their own; they end with this process."""

    def __init__(self, stack: str, cpus: Collection[int], progress: Callable[[str], None]) -> None:
        paths = StackPaths(stack)
        self._pki, self._cpus = paths.pki, cpus
        self._folder = private_dir(paths.root / "bench")
        self._k6 = artifacts.bench_program("k6", progress)
        self._kwok = artifacts.bench_program("kwok", progress)
        self._runs = 0

    @property
    def _authority(self) -> Path:
        return self._pki / "kubernetes" / "ca.crt"

    def client(self, url: str, authority: str, user: str, groups: Sequence[str]) -> Client:
        """Return a client with a new certificate.

        Args:
            url: Whom it asks.
            authority: Who signs it.
            user: User name.
            groups: Groups of the user.
        """
        pair = self._folder / f"{authority}-{user.rpartition(':')[2]}.pem"
        return Client(url, write_private(pair, pki.client(self._pki, authority, user, groups)))

    def start(self, script: str, client: Client, nice: int = 0, **variables: object) -> Running:
        """Let clients ask.

        Args:
            script: A script of k6/, without its suffix.
            client: Who asks whom.
            nice: Their nice value.
            variables: What the script wants to know.
        """
        self._runs += 1
        summary = self._folder / f"{script}-{self._runs}.json"
        given = {
            "URL": client.url,
            "CERTIFICATE": client.pair,
            "KEY": client.pair,
            "SUMMARY": summary,
            # It has no option for authorities; Go reads this one.
            "SSL_CERT_FILE": self._authority,
            **variables,
        }
        argv = [str(self._k6), "run", "--quiet", "--no-usage-report", "--address="]
        process, log = self._spawn(
            [*argv, str(_SCRIPTS / f"{script}.js")],
            {**os.environ, **{name: str(value) for name, value in given.items()}},
            summary.name,
            nice,
        )
        return Running(process, summary, log)

    def fill(self, client: Client, objects: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Make objects, many at a time.

        Args:
            client: Who makes them.
            objects: Path and object.

        Raises:
            FleetfootError: One could not be made.
        """
        file = write_private(self._folder / "objects.json", json.dumps(objects))
        run = self.start("fill", client, FILE=file)
        failed = run.metrics(timeout=600)["failed"]["values"]
        if failed["rate"]:
            raise FleetfootError(
                f"{failed['passes']} of {len(objects)} objects could not be made:"
                f" {run.log.read_text(errors='replace')[-2000:]}",
                "the cluster is not what should be measured",
                "mend what the apiserver answered, then run it again",
            )

    @contextlib.contextmanager
    def nodes(self, client: Client, nice: int = 0) -> Iterator[None]:
        """Play every node of the cluster: heartbeats, and pods that run at once and end when told.

        Args:
            client: Who does so; kubelets' identities would need one process each.
            nice: Its nice value.
        """
        config = kubeconfig(client.url, str(self._authority), str(client.pair), "nodes")
        file = write_private(self._folder / "nodes.kubeconfig", config)
        argv = [str(self._kwok), f"--kubeconfig={file}", f"--config={_STAGES}"]
        argv += ["--manage-all-nodes", f"--node-lease-duration-seconds={_LEASE_SECONDS}"]
        process, log = self._spawn(argv, dict(os.environ), "kwok", nice)

        def check() -> None:
            if process.poll() is not None:
                raise FleetfootError(
                    f"kwok ended: {log.read_text(errors='replace')[-2000:]}",
                    "the nodes of what was measured were dead",
                    "mend what it names, then run it again",
                )

        try:
            yield
            check()
        except FleetfootError:
            check()  # what was waited for in vain had this cause
            raise
        finally:
            process.terminate()
            process.wait()

    def _spawn(
        self, argv: list[str], env: dict[str, str], name: str, nice: int
    ) -> tuple[subprocess.Popen[bytes], Path]:
        log = self._folder / f"{name}.log"
        with on_cpus(self._cpus), log.open("wb") as output:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", "--", "nice", f"--adjustment={nice}", *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=self._folder,
            )
        return process, log
