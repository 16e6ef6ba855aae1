"""What is said of etcd's members, on the machines that are recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fleetfoot import etcd
from fleetfoot.paths import StackPaths


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StackPaths:
    """The folders of a stack in a checkout of its own."""
    mine = StackPaths("mine", tmp_path)
    monkeypatch.setattr(etcd, "StackPaths", lambda _stack: mine)
    return mine


def record(paths: StackPaths, children: dict[str, Any]) -> None:
    inventory = paths.inventory("site")
    inventory.parent.mkdir(parents=True)
    hosts = {"control-1": {"ansible_host": "10.1.0.2"}}
    inventory.write_text(json.dumps({"all": {"hosts": hosts, "children": children}}))


@pytest.mark.usefixtures("paths")
def test_a_stack_that_was_never_made_has_no_members() -> None:
    assert etcd.members("mine", set()) == []


def test_a_stack_from_before_events_had_an_etcd_is_told(paths: StackPaths) -> None:
    record(paths, {"etcd": {"hosts": {"control-1": {}}}})
    assert etcd.members("mine", set()) == [
        {"member": "control-1", "ready": False, "leads": False, "size_mib": 0, "alarms": []}
    ]


def answer(leader: int) -> str:
    said = {"leader": leader, "header": {"member_id": 7}, "dbSize": 5 << 20, "errors": ["NOSPACE"]}
    return json.dumps([{"Status": said}])


ANSWER = answer(7)


@pytest.mark.parametrize(
    ("said", "ready", "alarms"),
    [
        (f" 900\n{ANSWER}\n", True, ["NOSPACE"]),
        (f" 900\n{answer(0)}\n", False, ["NOSPACE"]),
        (f"   3\n{ANSWER}\n", True, ["NOSPACE", "DISK 3 MiB free"]),
        ("   0\nnull\n", False, ["DISK 0 MiB free"]),
        ("  64\n", False, []),
        ("", False, []),
    ],
    ids=[
        "room",
        "without-a-leader",
        "little-room",
        "no-room-and-silent",
        "silent",
        "no-such-folder",
    ],
)
def test_a_member_says_what_alarms_it(
    paths: StackPaths, monkeypatch: pytest.MonkeyPatch, said: str, ready: bool, alarms: list[str]
) -> None:
    record(paths, {"etcd": {"hosts": {"control-1": {}}}})
    monkeypatch.setattr(etcd, "run", lambda _argv: said)
    [row] = etcd.members("mine", {"10.1.0.2"})
    assert (row["ready"], row["leads"], row["alarms"]) == (ready, ready, alarms)
