"""Whose turn it is while machines are replaced, and what is looked at before programs change."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from fleetfoot import artifacts
from fleetfoot.cluster import Cluster
from fleetfoot.errors import FleetfootError
from fleetfoot.stack import onboarding, rolling
from fleetfoot.stack.rolling import MachineInputs

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = {"name": "control", "digest": "0" * 64, "path": "/image", "kernel": "", "initrd": ""}


@pytest.fixture(autouse=True)
def fresh_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rolling, "_gates", {})


def machine(name: str, pool: str, *, node: bool = False, **roll: int) -> MachineInputs:
    props: dict[str, Any] = {"stack": "unit", "name": name, "pool": pool, "backend": "nspawn"}
    props |= {"image": {**IMAGE, "cmdline": "", "seed": "credentials"}, "roll": roll}
    props |= {"cpus": 1, "memory": 512, "disk": 0, "node": {"labels": {}} if node else None}
    return MachineInputs(props)


def waits(other: MachineInputs) -> bool:
    """Whether a machine has to wait for its turn now."""
    entered = threading.Event()

    def enter() -> None:
        with rolling._turn(other):
            entered.set()

    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    return not entered.wait(0.3)


def test_control_machines_of_all_pools_take_turns() -> None:
    quorum = machine("quorum-1", "quorum", max_unavailable=3)
    with rolling._turn(machine("control-1", "control", max_unavailable=3)):
        assert waits(quorum)
        assert not waits(machine("worker-1", "worker", node=True))
    assert not waits(quorum)


def test_one_control_machine_that_fails_stops_those_of_other_pools() -> None:
    with pytest.raises(RuntimeError), rolling._turn(machine("control-1", "control")):
        raise RuntimeError
    with (
        pytest.raises(FleetfootError, match="the control plane stopped at control-1"),
        rolling._turn(machine("quorum-1", "quorum")),
    ):
        pass


@pytest.mark.parametrize(
    ("answers", "running", "wanted"),
    [
        (True, "v1.36.1", ["before-upgrade", "site"]),
        (True, "v1.36.2", ["site"]),
        (False, "", ["site"]),
    ],
)
def test_other_programs_are_looked_at_before_they_are_brought(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    answers: bool,
    running: str,
    wanted: list[str],
) -> None:
    (tmp_path / "versions.json").write_text(json.dumps({"kube-apiserver": "v1.36.2"}))
    monkeypatch.setattr(artifacts, "directory", lambda: tmp_path)
    monkeypatch.setattr(Cluster, "answers", lambda _: answers)
    monkeypatch.setattr(Cluster, "kubectl", lambda *_: json.dumps({"gitVersion": running}))
    played: list[str] = []
    monkeypatch.setattr(onboarding, "_play", lambda props: played.append(props["name"]))
    onboarding.run({"stack": "unit", "name": "site", "playbook": "site.yml", "inventory": {}})
    assert played == wanted
