"""Lanes: who takes which, and that nobody waits for another one's."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

import pytest

from fleetfoot.stack.sides import LANES
from tests.e2e.stacks import Front, Stack, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = pytest.mark.e2e

LEVELS = "/apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations"


@dataclass(frozen=True)
class Request:
    """Who asks whom for what.

    Attributes:
        path: For what.
        group: Whose front end.
        identity: Whose certificate.
        user: For whom the identity speaks.
        member: A group of that user.
    """

    path: str
    group: str = "online"
    identity: str = "operator"
    user: str = ""
    member: str = ""

    def front(self, stack: Stack) -> Front:
        """Return who sends it."""
        return Front(stack, self.group, identity=self.identity, user=self.user, member=self.member)


_NODE = {"user": "system:node:worker-1", "member": "system:nodes"}
#: A request of each lane, by the lane's name.
REQUESTS = {
    "online": Request("/api/v1/namespaces/default/pods"),
    "bulk": Request("/api/v1/pods"),
    "offline": Request("/api/v1/namespaces/offline/pods", "offline", "offline"),
    "nodes": Request(
        "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/worker-1", **_NODE
    ),
    "kubelets": Request("/api/v1/nodes/worker-1", **_NODE),
    "system": Request("/api/v1/namespaces/default/pods", user="system:kube-scheduler"),
}
_NO_SEATS = {"nominalConcurrencyShares": 0, "borrowingLimitPercent": 0, "lendablePercent": 0}
_HANGS_SECONDS, _ANSWERED_SECONDS = 2, 10


@pytest.fixture(scope="module")
def fronts(environment: Stack) -> dict[str, Front]:
    """Clients by lane, and the operator's that works when nothing else does."""
    found = {lane: request.front(environment) for lane, request in REQUESTS.items()}
    return {**found, "break-glass": Front(environment, "online", identity="break-glass")}


@contextlib.contextmanager
def without_seats(operator: Front, *lanes: str) -> Iterator[None]:
    """Take all seats of lanes, as long running requests would, while the block runs."""

    def patch(lane: str, limited: Mapping[str, int | None]) -> None:
        path = f"{LEVELS}/fleetfoot-{lane}"
        status, _, said = operator.send(path, "PATCH", {"spec": {"limited": limited}})
        assert status == HTTPStatus.OK, said

    before = {}
    for lane in lanes:
        limited = json.loads(operator.send(f"{LEVELS}/fleetfoot-{lane}")[2])["spec"]["limited"]
        before[lane] = {key: limited.get(key) for key in _NO_SEATS}
    try:
        for lane in lanes:
            patch(lane, _NO_SEATS)
        yield
    finally:
        for lane, limited in before.items():
            patch(lane, limited)


def answered(fronts: dict[str, Front], lane: str) -> bool:
    """Return whether a request of the lane is answered, though the host may be busy."""
    path = REQUESTS[lane].path
    return fronts[lane].send(path, timeout=_ANSWERED_SECONDS)[0] == HTTPStatus.OK


def hangs(fronts: dict[str, Front], lane: str) -> bool:
    """Return whether a request of the lane waits."""
    try:
        fronts[lane].send(REQUESTS[lane].path, timeout=_HANGS_SECONDS)
    except TimeoutError:
        return True
    return False


def dispatched(operator: Front, lane: str) -> float:
    """Return how many requests of a lane the online apiserver let through so far."""
    start = "apiserver_flowcontrol_dispatched_requests_total{"
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in operator.send("/metrics")[2].splitlines()
        if line.startswith(start) and f'priority_level="fleetfoot-{lane}"' in line
    )


@pytest.mark.parametrize(
    ("asked", "lane"),
    [
        *((request, f"fleetfoot-{lane}") for lane, request in REQUESTS.items()),
        (Request("/api/v1/pods?watch=1&timeoutSeconds=1"), "fleetfoot-bulk"),
        (Request("/api/v1/namespaces/offline/events", "offline", "offline"), "fleetfoot-offline"),
        (Request("/api/v1/pods", identity="break-glass"), "exempt"),
    ],
    ids=[*REQUESTS, "bulk-watch", "offline-events", "break-glass"],
)
def test_a_request_takes_its_lane(environment: Stack, asked: Request, lane: str) -> None:
    levels = environment.get("prioritylevelconfigurations")["items"]
    names = {level["metadata"]["uid"]: level["metadata"]["name"] for level in levels}
    status, headers, said = asked.front(environment).send(asked.path)
    assert status == HTTPStatus.OK, said
    assert names[headers["X-Kubernetes-PF-PriorityLevel-UID"]] == lane


def test_what_nodes_ask_has_lanes_of_its_own(fronts: dict[str, Front]) -> None:
    operator = fronts["break-glass"]
    before = dispatched(operator, "nodes")
    eventually(lambda: dispatched(operator, "nodes") > before)
    # What nodes ask besides, such as the status of pods, keeps nobody of the system waiting.
    assert dispatched(operator, "kubelets") > 0
    assert dispatched(operator, "system") > 0


@pytest.mark.parametrize("lane", REQUESTS)
def test_a_full_lane_keeps_nobody_else_waiting(fronts: dict[str, Front], lane: str) -> None:
    operator = fronts["break-glass"]
    with without_seats(operator, lane):
        eventually(lambda: hangs(fronts, lane))
        waiting = [other for other in REQUESTS if other != lane and not answered(fronts, other)]
        assert not waiting
        assert hangs(fronts, lane)
    eventually(lambda: not hangs(fronts, lane))


def test_break_glass_works_when_every_lane_is_full(fronts: dict[str, Front]) -> None:
    operator = fronts["break-glass"]
    with without_seats(operator, *(lane.name for lane in LANES)):
        eventually(lambda: hangs(fronts, "online"))
        for request in REQUESTS.values():
            assert operator.send(request.path, timeout=_HANGS_SECONDS)[0] == HTTPStatus.OK
    eventually(lambda: not hangs(fronts, "online"))
