"""What happens before and after the control plane's playbook."""

from __future__ import annotations

import json
import shutil
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from fleetfoot.errors import FleetfootError
from fleetfoot.paths import StackPaths, write_private
from fleetfoot.stack import onboarding

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROPS = {"stack": "mine", "name": "site", "playbook": "site.yml", "inventory": {}}


broken: set[str] = set()
"""Playbooks that fail."""


class Silent:
    """A cluster that does not answer."""

    version = ""

    def __init__(self, _stack: str) -> None:
        pass

    def answers(self) -> bool:
        return bool(self.version)

    def kubectl(self, *_argv: str) -> str:
        return json.dumps({"gitVersion": self.version})


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Playbooks that were run, with their options, on a stack whose folder is the test's own."""
    names: list[str] = []
    broken.clear()
    (tmp_path / "versions.json").write_text(json.dumps({"kube-apiserver": "v1.36.2"}))
    monkeypatch.setattr(onboarding, "StackPaths", lambda name: StackPaths(name, tmp_path))
    monkeypatch.setattr(onboarding.artifacts, "directory", lambda: tmp_path)
    monkeypatch.setattr(onboarding, "Cluster", Silent)
    monkeypatch.setattr(onboarding, "_PATIENCE", 0.0)

    def play(props: dict[str, Any], *options: str) -> None:
        names.append(" ".join([props["playbook"], *options]))
        record = StackPaths("mine", tmp_path).inventory(props["name"])
        write_private(record, json.dumps(props["inventory"]))
        if props["playbook"] in broken:
            raise FleetfootError("a server does not come up", "", "")

    monkeypatch.setattr(onboarding, "_play", play)
    return names


def was(folder: Path, version: str) -> None:
    file = StackPaths("mine", folder).root / "kubernetes-version"
    file.parent.mkdir(parents=True)
    file.write_text(version)


def test_a_new_control_plane_is_made_and_its_version_noted(
    played: list[str], tmp_path: Path
) -> None:
    onboarding.run(PROPS)
    assert played == ["site.yml"]
    assert (StackPaths("mine", tmp_path).root / "kubernetes-version").read_text() == "v1.36.2"


@pytest.mark.parametrize("before", ["v1.36.2", "v1.36.0", "v1.35.4"])
def test_one_that_does_not_answer_comes_back_at_most_a_step_on(
    played: list[str], tmp_path: Path, before: str
) -> None:
    was(tmp_path, before)
    onboarding.run(PROPS)
    assert played == ["site.yml"]


@pytest.mark.parametrize("before", ["v1.36.3", "v1.37.0", "v1.34.9", "v2.36.2"])
def test_one_that_does_not_answer_is_not_taken_further(
    played: list[str], tmp_path: Path, before: str
) -> None:
    was(tmp_path, before)
    with pytest.raises(FleetfootError, match=rf"was Kubernetes {before}.*v1\.36\.2"):
        onboarding.run(PROPS)
    assert not played


@pytest.mark.parametrize(
    ("running", "first"), [("v1.36.2", []), ("v1.36.1", ["before_upgrade.yml"])]
)
def test_a_running_one_is_upgraded_with_its_refusals(
    played: list[str], monkeypatch: pytest.MonkeyPatch, running: str, first: list[str]
) -> None:
    monkeypatch.setattr(Silent, "version", running)
    onboarding.run(PROPS)
    assert played == [*first, "site.yml"]


@pytest.mark.parametrize(("before", "first"), [("others", ["before_upgrade.yml"]), ("", [])])
def test_other_programs_of_the_same_kubernetes_are_an_upgrade_too(
    played: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    before: str,
    first: list[str],
) -> None:
    was(tmp_path, "v1.36.2")
    (StackPaths("mine", tmp_path).root / "site-programs").write_text(before or tmp_path.name)
    monkeypatch.setattr(Silent, "version", "v1.36.2")
    onboarding.run(PROPS)
    assert played == [*first, "site.yml"]


def test_an_upgrade_that_did_not_come_through_does_not_keep_a_better_one_away(
    played: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Silent, "version", "v1.36.1")
    broken.add("site.yml")
    with pytest.raises(FleetfootError, match="does not come up"):
        onboarding.run(PROPS)
    broken.clear()
    onboarding.run(PROPS)
    again = "before_upgrade.yml -e upgrade_check_strict=false"
    assert played == ["before_upgrade.yml", "site.yml", again, "site.yml"]
    onboarding.run(PROPS)
    assert played[4:] == ["site.yml"]


def test_what_was_refused_is_not_taken_for_what_is_there(played: list[str], tmp_path: Path) -> None:
    def inventory(name: str) -> dict[str, Any]:
        return {"all": {"hosts": {name: {}}, "vars": {}}}

    onboarding.run({**PROPS, "inventory": inventory("one")})
    broken.add("site.yml")
    with pytest.raises(FleetfootError, match="does not come up"):
        onboarding.run({**PROPS, "inventory": inventory("two")})
    every = StackPaths("mine", tmp_path).control_plane()
    assert every is not None
    assert set(every["hosts"]) == {"one"}
    assert len(played) == 2


def test_a_run_on_some_machines_is_no_upgrade(
    played: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Silent, "version", "v1.36.1")
    onboarding.run({**PROPS, "limit": ["control-2"]})
    assert played == ["site.yml"]


def stands(folder: Path, monkeypatch: pytest.MonkeyPatch, *, programs: str, down: str = "") -> None:
    """Let a control plane of two machines be there that was made with some programs."""
    hosts = {name: {"ansible_host": f"10.0.0.{i}"} for i, name in enumerate(("one", "two"))}
    paths = StackPaths("mine", folder)
    record = {"all": {"hosts": hosts, "vars": {"fleetfoot_artifacts_dir": "before"}}}
    paths.inventory("site").parent.mkdir(parents=True)
    paths.inventory("site").write_text(json.dumps(record))
    (paths.root / "site-programs").write_text(programs)
    machines = [
        SimpleNamespace(address=facts["ansible_host"], running=name != down)
        for name, facts in hosts.items()
    ]
    fleet = SimpleNamespace(all=lambda: machines)
    monkeypatch.setattr(onboarding, "Fleet", SimpleNamespace(of_stack=lambda _: fleet))
    monkeypatch.setattr(Silent, "version", "v1.36.1")


def test_machines_are_replaced_after_an_upgrade_in_place(
    played: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stands(tmp_path, monkeypatch, programs="before")
    onboarding.catch_up("mine")
    assert played == ["before_upgrade.yml", "site.yml"]
    onboarding.catch_up("mine")
    assert len(played) == 2, "it was upgraded twice"
    every = onboarding.recorded("mine")
    assert every is not None
    assert every["vars"]["fleetfoot_artifacts_dir"] == str(tmp_path)


def test_no_upgrade_begins_while_a_member_is_away(
    played: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stands(tmp_path, monkeypatch, programs="before", down="two")
    with pytest.raises(FleetfootError, match="two of the control plane is down"):
        onboarding.catch_up("mine")
    assert not played


def test_one_that_does_not_answer_loses_no_machine_to_programs_it_must_not_have(
    played: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stands(tmp_path, monkeypatch, programs="before")
    monkeypatch.setattr(Silent, "version", "")
    onboarding.catch_up("mine")
    (StackPaths("mine", tmp_path).root / "kubernetes-version").write_text("v1.36.3")
    with pytest.raises(FleetfootError, match=r"was Kubernetes v1\.36\.3, does not answer"):
        onboarding.catch_up("mine")
    assert not played


def test_one_that_answers_late_is_upgraded_with_its_refusals(
    played: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stands(tmp_path, monkeypatch, programs="before")
    monkeypatch.setattr(Silent, "version", "")
    monkeypatch.setattr(onboarding, "_PATIENCE", 60.0)

    def come_up(_seconds: float) -> None:
        Silent.version = "v1.36.1"

    monkeypatch.setattr(onboarding.time, "sleep", come_up)
    onboarding.catch_up("mine")
    assert played == ["before_upgrade.yml", "site.yml"]


def test_the_same_programs_are_no_upgrade(
    played: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stands(tmp_path, monkeypatch, programs=tmp_path.name, down="two")
    onboarding.catch_up("mine")
    assert not played


@pytest.fixture
def nobody() -> Iterator[dict[str, Any]]:
    """A run on a machine that cannot be reached; its stack has a folder of its own."""
    stack = "unit-onboarding"
    with socket.socket() as closed:  # bound, so that nobody else listens there
        closed.bind(("127.0.0.1", 0))
        host = {"ansible_host": "127.0.0.1", "ansible_port": closed.getsockname()[1]}
        inventory = {"workers": {"hosts": {"worker-1": host}}}
        props = {"stack": stack, "name": "once", "inventory": inventory, "playbook": "onboard.yml"}
        yield {**props, "limit": ["worker-1"]}
    shutil.rmtree(StackPaths(stack).root)


@pytest.mark.parametrize("nodes", [[], ["worker-1"]])
def test_a_node_that_cannot_be_reached_is_tried_twice(
    nobody: dict[str, Any], nodes: list[str]
) -> None:
    with pytest.raises(FleetfootError, match="unreachable=1"):
        onboarding.run({**nobody, "nodes": nodes})
    log = StackPaths(nobody["stack"]).root / "logs" / "once.log"
    assert log.read_text().count("PLAY RECAP") == 1 + len(nodes)
