"""Every role's Molecule scenarios, on real Debian 13 systems.

Two machines are shared, one by the roles of the control plane and one by the others, and worked on
at once; on each, roles come in the order in which they need each other. `molecule test --all` in a
role's folder runs the same scenarios on a machine of its own.
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
SCENARIOS = sorted(
    (
        (path.parents[2].name, path.parent.name)
        for path in (PROJECT / "roles").glob("*/molecule/*/molecule.yml")
    ),
    key=lambda scenario: (scenario[0], scenario[1] != "default"),
)
CONTROL = [
    "pki", "etcd", "kube_apiserver", "load_balancer", "kube_bootstrap", "kube_controller_manager",
    "kube_scheduler", "kubelet_csr_approver", "coredns", "registry", "lazy_converter", "kubelet",
    "kube_proxy", "node_drain", "node_leave", "upgrade_check", "etcd_backup", "etcd_restore",
]  # fmt: skip
_SECONDS = 1800  # they have what stacks leave of the CPU
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


Runs = dict[tuple[str, str], Future[tuple[int, str]]]
"""Status and output of Molecule by role and scenario."""


def needs(role: str, scenario: str) -> set[str]:
    """Roles that the scenario's prepare.yml applies; a set with "" when it does more than that."""
    path = PROJECT / "roles" / role / "molecule" / scenario / "prepare.yml"
    if not path.exists():
        return set()
    found: set[str] = set()
    for play in yaml.safe_load(path.read_text()):
        found |= {item if isinstance(item, str) else item["role"] for item in play.get("roles", [])}
        more = {"ansible.builtin.import_playbook", "pre_tasks", "tasks", "vars"}
        found |= {""} if more & play.keys() else set()
    return found


@dataclass
class Shared:
    """One machine, and the roles that are tested on it, one after another."""

    stack: str
    folder: Path
    done: set[str] = field(default_factory=set)
    facts: dict[str, str] = field(default_factory=dict)

    def test(self, role: str, scenario: str) -> tuple[int, str]:
        """Return the status and output of Molecule's run."""
        if not self.facts:
            machine.down(self.stack)  # what a killed run left
            self.facts = machine.up(self.stack)
        ephemeral = self.folder / role / scenario
        machine.describe(self.stack, self.facts, ephemeral, ephemeral / "instance_config.yml")
        sequence = "shared.yml" if needs(role, scenario) <= self.done else "shared_prepare.yml"
        binaries = Path(sys.executable).parent
        command = [str(binaries / "molecule")]
        command += ["--base-config", str(PROJECT / ".config/molecule/config.yml")]
        command += ["--base-config", str(PROJECT / "tests/molecule" / sequence), "test"]
        command += ["--scenario-name", scenario]
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
) -> Iterator[Runs]:
    """Start what was selected; each test waits for its own role."""
    selected = {
        (item.callspec.params["role"], item.callspec.params["scenario"])
        for item in request.session.items
        if item.fspath == request.node.fspath or "runs" in getattr(item, "fixturenames", ())
    }
    folder = tmp_path_factory.mktemp("molecule")
    queues: dict[str, Any] = dict.fromkeys(machine.SHARED, ())
    asked = [scenario for scenario in SCENARIOS if scenario in selected]
    queues["mol-control"] = [one for role in CONTROL for one in asked if one[0] == role]
    queues["mol-node"] = [one for one in asked if one[0] not in CONTROL]
    with ThreadPoolExecutor() as pool:
        futures: Runs = {}
        workers = []
        for stack, queue in queues.items():
            promised: Runs = {scenario: Future() for scenario in queue}
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


def _work(shared: Shared, queue: Runs) -> None:
    for scenario, future in queue.items():
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(shared.test(*scenario))
        except BaseException as error:  # the test that waits raises it again
            future.set_exception(error)


@pytest.mark.parametrize(("role", "scenario"), SCENARIOS)
def test_role(role: str, scenario: str, runs: Runs) -> None:
    status, output = runs[role, scenario].result()
    assert status == 0, output[-12000:]
