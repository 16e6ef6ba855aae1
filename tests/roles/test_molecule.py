"""Every role's Molecule scenario, on real Debian 13 systems.

Two machines are shared, one by the roles of the control plane and one by the others, and worked on
at once; on each, roles come in the order in which they need each other. `molecule test` in a role's
folder runs the same scenario on a machine of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.molecule import machine

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).parents[2]
ROLES = sorted(path.parent.name for path in (PROJECT / "roles").glob("*/tasks"))
CONTROL = [
    "pki", "etcd", "kube_apiserver", "load_balancer", "kube_bootstrap", "kube_controller_manager",
    "kube_scheduler", "kubelet_csr_approver", "coredns", "registry", "kubelet", "kube_proxy",
    "node_leave",
]  # fmt: skip
_SECONDS = 600
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def scenario(role: str) -> Path:
    return PROJECT / "roles" / role / "molecule" / "default"


def needs(role: str) -> set[str]:
    """Roles that the scenario's prepare.yml applies; a set with "" when it does more than that."""
    path = scenario(role) / "prepare.yml"
    if not path.exists():
        return set()
    found: set[str] = set()
    for play in yaml.safe_load(path.read_text()):
        found |= {item if isinstance(item, str) else item["role"] for item in play.get("roles", [])}
        found |= {""} if "tasks" in play or "pre_tasks" in play else set()
    return found


@dataclass
class Shared:
    """One machine, and the roles that are tested on it, one after another."""

    stack: str
    folder: Path
    done: set[str] = field(default_factory=set)
    facts: dict[str, str] = field(default_factory=dict)

    def test(self, role: str) -> tuple[int, str]:
        """Return the status and output of Molecule's run."""
        if not self.facts:
            machine.down(self.stack)  # what a killed run left
            self.facts = machine.up(self.stack)
        ephemeral = self.folder / role
        machine.describe(self.stack, self.facts, ephemeral, ephemeral / "instance_config.yml")
        sequence = "shared.yml" if needs(role) <= self.done else "shared_prepare.yml"
        binaries = Path(sys.executable).parent
        command = [str(binaries / "molecule")]
        command += ["--base-config", str(PROJECT / ".config/molecule/config.yml")]
        command += ["--base-config", str(PROJECT / "tests/molecule" / sequence), "test"]
        ended = subprocess.run(
            command,
            cwd=PROJECT / "roles" / role,
            env={
                **os.environ,
                "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
                "MOLECULE_EPHEMERAL_DIRECTORY": str(ephemeral),
                "MOLECULE_COMMAND_BORDERS": "false",
                "FLEETFOOT_MOLECULE_STACK": self.stack,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if ended.returncode == 0:
            self.done.add(role)
        return ended.returncode, _COLOUR.sub("", ended.stdout)


@pytest.fixture(scope="session")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[tuple[int, str]]]]:
    """Start what was selected; each test waits for its own role."""
    asked = {
        item.callspec.params["role"]
        for item in request.session.items
        if item.fspath == request.node.fspath or "runs" in getattr(item, "fixturenames", ())
    }
    folder = tmp_path_factory.mktemp("molecule")
    queues: dict[str, Any] = dict.fromkeys(machine.SHARED, ())
    queues["mol-control"] = [role for role in CONTROL if role in asked]
    queues["mol-node"] = [role for role in ROLES if role in asked and role not in CONTROL]
    with ThreadPoolExecutor() as pool:
        futures: dict[str, Future[tuple[int, str]]] = {}
        workers = []
        for stack, queue in queues.items():
            promised = {role: Future() for role in queue}  # type: ignore[var-annotated]
            futures |= promised
            workers.append(pool.submit(_work, Shared(stack, folder / stack), promised))
        try:
            yield futures
        finally:
            for future in futures.values():
                future.cancel()
            for worker in workers:
                worker.result()
            for stack in machine.SHARED:
                machine.down(stack)


def _work(shared: Shared, queue: dict[str, Future[tuple[int, str]]]) -> None:
    for role, future in queue.items():
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(shared.test(role))
        except BaseException as error:  # the test that waits raises it again
            future.set_exception(error)


@pytest.mark.parametrize("role", ROLES)
def test_role(role: str, runs: dict[str, Future[tuple[int, str]]]) -> None:
    status, output = runs[role].result()
    assert status == 0, output[-12000:]
