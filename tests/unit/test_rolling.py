"""Whose turn it is while machines are replaced."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from fleetfoot.errors import FleetfootError
from fleetfoot.stack import rolling
from fleetfoot.stack.rolling import MachineInputs

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
