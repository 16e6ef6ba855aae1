"""Pools that a newer checkout of this project upgrades, while clients write."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from fleetfoot import artifacts
from fleetfoot.cluster import is_ready
from tests.e2e.counter import counting
from tests.e2e.stacks import PROJECT, STATE, NodeWatch, Stack

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.long]

#: In one place, so that its virtual environment serves the next time, too.
CHECKOUT = STATE / "e2e-checkout"
_DEFAULTS = "roles/node_software/defaults/main.yml"


def copy_of_this_checkout() -> None:
    """Make the other checkout of what stands here, keeping what is installed and running there."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    CHECKOUT.mkdir(parents=True, exist_ok=True)
    for left in CHECKOUT.iterdir():
        if left.is_dir() and left.name not in {".venv", ".fleetfoot"}:
            shutil.rmtree(left)
    for name in filter(None, listed.split("\0")):
        target = CHECKOUT / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / name, target, follow_symlinks=False)


def pin_earlier(folder: str) -> None:
    """Pin in the other checkout what a folder of tools/ pins: as it was some releases ago."""
    pins = PROJECT / "tools" / folder
    for file in ("go.mod", "go.sum"):
        shutil.copy2(pins / file, CHECKOUT / "tools" / "kubernetes" / file)
    found = re.search(r"k8s\.io/kubernetes v(\S+)", (pins / "go.mod").read_text())
    assert found
    defaults = CHECKOUT / _DEFAULTS
    text = re.sub(r"(?m)^(  kubernetes:) .*$", rf"\1 {found[1]}", defaults.read_text())
    defaults.write_text(text)
    if found[1].startswith("1.35."):
        # It does not serve these objects yet.
        sides = CHECKOUT / "fleetfoot/stack/sides.py"
        mutating = r'(?m)^ +_object\(_ADMISSION, "MutatingAdmissionPolicy(Binding)?", .*\n'
        text, removed = re.subn(mutating, "", sides.read_text())
        assert removed == 2
        sides.write_text(text)


def set_up() -> None:
    """Make what the other checkout pins, as the first part of `make up` does."""
    subprocess.run(["make", "host"], cwd=CHECKOUT, check=True, timeout=3600)


def versions(stack: Stack) -> set[str]:
    """Return what the apiserver and each kubelet say that they are."""
    server = json.loads(stack.kubectl("get", "--raw=/version"))["gitVersion"]
    nodes = stack.get("nodes")["items"]
    assert all(is_ready(node) for node in nodes)
    return {server} | {node["status"]["nodeInfo"]["kubeletVersion"] for node in nodes}


@pytest.fixture(params=["kubernetes-1.36", "kubernetes-1.35"])
def earlier(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """Pools of an earlier checkout, with two workers."""
    copy_of_this_checkout()
    pin_earlier(request.param)
    set_up()
    with Stack("e2e-checkout", 68, like="ha", project=CHECKOUT) as stack:
        stack.down()  # what a killed run left
        shutil.rmtree(stack.paths.backups, ignore_errors=True)  # the test looks for one of its own
        stack.pool("worker")["count"] = 2
        stack.write()
        stack.fleetfoot("up")
        yield stack


def machines(stack: Stack) -> dict[str, float]:
    """Return when each machine was made."""
    records = stack.paths.machines.glob("*/machine.json")
    return {path.parent.name: path.stat().st_mtime for path in records}


def test_pools_are_upgraded_by_up(earlier: Stack) -> None:
    wanted = json.loads((artifacts.directory() / "versions.json").read_text())["kube-apiserver"]
    old, before = versions(earlier), machines(earlier)
    assert len(old) == 1
    assert old != {wanted}
    copy_of_this_checkout()
    set_up()
    with (
        counting(earlier) as online,
        counting(earlier, "offline", "offline") as offline,
        NodeWatch(earlier) as watch,
    ):
        earlier.fleetfoot("up", timeout=3600)
    for side in (online, offline):
        print(f"{side.acknowledged} writes, sent again: {side.failed}")
    assert not online.turned_away + offline.turned_away
    assert versions(earlier) == {wanted}
    after = machines(earlier)
    # Nodes are made anew, one after another; what control machines run is changed in place.
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"worker-1", "worker-2"}
    assert watch.fewest >= 1
    assert list((earlier.paths.root / "backups").glob(f"before-{wanted}-*.tar"))
    earlier.fleetfoot("up")
    assert machines(earlier) == after
