"""What our resources answer to an engine, without machines."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

import pytest

from fleetfoot.paths import StackPaths, private_dir
from fleetfoot.stack.providers import (
    ContainerImageProvider,
    EndpointProvider,
    ImageProvider,
    MachineProvider,
    NetworkProvider,
    PlaybookProvider,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pulumi.dynamic import ResourceProvider

STACK = "unit-providers"
NETWORK = {"stack": STACK, "cidr": "10.1.0.0/24", "uplink": "10.2.0.0/30", "zone": "z"}


@pytest.fixture
def machine() -> Iterator[None]:
    paths = StackPaths(STACK)
    private_dir(paths.machines / "worker-1")
    yield
    shutil.rmtree(paths.root)


@pytest.mark.usefixtures("machine")
def test_a_network_with_machines_in_it_cannot_change() -> None:
    wanted = {**NETWORK, "cluster": [], "cidr": "10.9.0.0/24"}
    failures = NetworkProvider().check({**NETWORK, "cluster": []}, wanted).failures
    assert [failure.property for failure in failures] == ["cidr"]
    assert "10.1.0.0/24" in failures[0].reason
    assert "make down" in failures[0].reason
    assert not NetworkProvider().check(wanted, wanted).failures


def test_a_network_without_machines_may_change() -> None:
    olds, news = {**NETWORK, "cluster": []}, {**NETWORK, "cluster": ["10.3.0.0/16"]}
    assert not NetworkProvider().check(olds, news).failures
    assert not NetworkProvider().check({}, news).failures


def test_a_machine_that_does_not_run_is_made_again() -> None:
    props = {"name": "worker-1", "stack": STACK, "backend": "qemu", "image": {"digest": "a"}}
    provider = MachineProvider()
    assert not provider.diff("worker-1", {**props, "started": 1.5}, props).changes
    dead = provider.diff("worker-1", {**props, "started": 0}, props)
    assert (dead.changes, dead.replaces) == (True, [])


@pytest.mark.parametrize(
    "provider",
    [
        ContainerImageProvider(),
        EndpointProvider(),
        ImageProvider(),
        MachineProvider(),
        NetworkProvider(),
        PlaybookProvider(),
    ],
)
def test_what_was_created_by_half_can_be_deleted(provider: ResourceProvider) -> None:
    props = {"name": "gone", "stack": STACK}
    checked = provider.check({}, props)
    assert checked.failures == []
    assert checked.inputs["__id"]


@pytest.mark.parametrize(("days", "due"), [(29, False), (31, True)])
def test_a_playbook_that_renews_is_due_again(days: int, due: bool) -> None:
    news = {"name": "site", "stack": STACK, "digest": "d", "repeat": 30}
    olds = {**news, "ran": time.time() - days * 86400}
    assert PlaybookProvider().diff("site", olds, news).changes is due
    assert not PlaybookProvider().diff("site", olds, {**news, "repeat": 0}).changes
