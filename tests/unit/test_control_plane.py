"""What must be true before a machine of the control plane goes."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from fleetfoot.errors import FleetfootError
from fleetfoot.stack import control_plane

HOSTS = {
    "one": {"ansible_host": "10.0.0.1"},
    "one-events": {"ansible_host": "10.0.0.1"},
    "two": {"ansible_host": "10.0.0.2"},
    "two-events": {"ansible_host": "10.0.0.2"},
}


class Plane:
    """A control plane of two machines.

    Attributes:
        down: Addresses of machines that do not run.
        gone: Names of machines whose disk is gone.
        broken: Whether machines that are down cannot start.
        etcd: Hosts with members of its database.
        silent: Members that do not serve.
        played: Hosts that runs of site.yml were limited to.
        mends: Whether such a run brings members to serve.
    """

    def __init__(self) -> None:
        self.down: set[str] = set()
        self.gone: set[str] = set()
        self.broken = False
        self.etcd = ["one", "two"]
        self.silent: set[str] = set()
        self.played: list[list[str]] = []
        self.mends = True

    @property
    def network(self) -> Any:
        return SimpleNamespace(address=lambda name: HOSTS[name]["ansible_host"])

    def read(self, name: str) -> Any:
        if name in self.gone:
            return None
        address = HOSTS[name]["ansible_host"]
        return SimpleNamespace(spec=name, address=address, running=address not in self.down)

    def create(self, spec: str, _credentials: dict[str, str]) -> None:
        if self.broken:
            raise FleetfootError("no disk", "", "")
        self.down.discard(HOSTS[spec]["ansible_host"])

    def recorded(self) -> dict[str, Any]:
        members = {"hosts": {name: {} for name in self.etcd}}
        return {"hosts": HOSTS, "children": {"etcd": members}}

    def members(self, _stack: str, _running: set[str]) -> list[dict[str, Any]]:
        return [{"member": name, "ready": name not in self.silent} for name in HOSTS]

    def run(self, props: dict[str, Any]) -> None:
        self.played.append(props["limit"])
        if self.mends:
            self.silent.clear()


@pytest.fixture
def plane(monkeypatch: pytest.MonkeyPatch) -> Plane:
    made = Plane()
    monkeypatch.setattr(control_plane, "Fleet", SimpleNamespace(of_stack=lambda _: made))
    monkeypatch.setattr(control_plane.ssh, "answers", lambda address: address not in made.down)
    monkeypatch.setattr(control_plane.etcd, "members", made.members)
    monkeypatch.setattr(control_plane.onboarding, "recorded", lambda _: made.recorded())
    monkeypatch.setattr(control_plane.onboarding, "run", made.run)
    monkeypatch.setattr(control_plane, "_PATIENCE", 0.0)
    monkeypatch.setattr(control_plane, "_PAUSE", 0.0)
    return made


def test_one_goes_while_the_other_serves(plane: Plane) -> None:
    control_plane.wait_for_others("mine", "one")
    control_plane.require_members("mine", "one")
    assert not plane.played


def test_one_that_runs_stays_while_another_is_down(plane: Plane) -> None:
    plane.down = {"10.0.0.2"}
    with pytest.raises(FleetfootError, match="two, two-events of the control plane is down"):
        control_plane.wait_for_others("mine", "one")


@pytest.mark.parametrize("gone", [set(), {"one"}])
def test_one_that_is_down_goes_only_while_others_have_what_it_knew(
    plane: Plane, gone: set[str]
) -> None:
    plane.down, plane.gone, plane.mends = {"10.0.0.1", "10.0.0.2"}, gone, False
    with pytest.raises(FleetfootError, match="two, two-events of the control plane is down"):
        control_plane.wait_for_others("mine", "one")
    plane.silent = {"two"}
    with pytest.raises(FleetfootError, match="two of etcd does not serve"):
        control_plane.require_members("mine", "one")


def test_all_that_are_down_come_back_before_one_goes(plane: Plane) -> None:
    plane.down = {"10.0.0.1", "10.0.0.2"}
    for name in ("one", "two"):
        control_plane.bring_back("mine", name)
    assert not plane.down
    control_plane.wait_for_others("mine", "one")


def test_one_that_cannot_start_is_replaced_while_the_others_serve(
    plane: Plane, capsys: pytest.CaptureFixture[str]
) -> None:
    plane.down, plane.broken = {"10.0.0.1"}, True
    control_plane.bring_back("mine", "one")
    assert "one does not start as it was: no disk" in capsys.readouterr().err
    control_plane.wait_for_others("mine", "one")
    control_plane.require_members("mine", "one")


@pytest.mark.parametrize(
    ("members", "volumes", "wanted", "refused"),
    [
        (["one"], [], [], "in none of its volumes"),
        (["one"], [], ["/var/lib/etcd"], "in none of its volumes"),
        (["one"], ["/var/lib/etcd-events"], [], "in none of its volumes"),
        (["one"], ["/var/lib/etcd"], ["/var/lib/etcd", "/srv"], ""),
        (["one"], ["/var/lib"], ["/var/lib"], ""),
        (["one"], ["/var/lib/etcd"], ["/var/lib"], "in the volume /var/lib/etcd"),
        (["one"], ["/var/lib/etcd"], ["/var/lib", "/var/lib/etcd"], ""),
        (["one"], ["/var/lib/etcd"], [], "in the volume /var/lib/etcd"),
        (["two"], [], [], ""),
        (["one", "two"], [], [], ""),
    ],
)
def test_the_only_one_that_knows_keeps_its_data(
    plane: Plane, members: list[str], volumes: list[str], wanted: list[str], refused: str
) -> None:
    plane.etcd = members
    told = rf"one is to be replaced.* only member of etcd.*{refused}"
    expected = pytest.raises(FleetfootError, match=told) if refused else contextlib.nullcontext()
    with expected:
        control_plane.require_kept("mine", "one", volumes, wanted)
    plane.gone = {"one"}
    control_plane.require_kept("mine", "one", volumes, wanted)


def test_one_that_comes_back_is_waited_for(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    plane.down = {"10.0.0.2"}

    def come_back(_seconds: float) -> None:
        plane.down.clear()

    monkeypatch.setattr(control_plane, "_PATIENCE", 60.0)
    monkeypatch.setattr(control_plane.time, "sleep", come_back)
    control_plane.wait_for_others("mine", "one")
    assert not plane.down


def test_one_that_came_back_is_set_up_first(plane: Plane) -> None:
    plane.silent = {"two-events"}
    control_plane.require_members("mine", "one")
    assert plane.played == [["two", "two-events", "localhost"]]


def test_one_stays_while_a_member_elsewhere_does_not_serve(plane: Plane) -> None:
    plane.silent, plane.mends = {"one-events", "two-events"}, False
    with pytest.raises(FleetfootError, match=r"^two-events of etcd does not serve"):
        control_plane.require_members("mine", "one")
