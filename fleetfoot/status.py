"""What runs: machines, apiservers by group, nodes with their features."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

from fleetfoot.cluster import Cluster, is_ready
from fleetfoot.errors import FleetfootError
from fleetfoot.machines.fleet import Fleet
from fleetfoot.stack.driver import driver

__all__ = ["Status", "gather"]

_CONNECT_SECONDS = 2
_FEATURE_PREFIX = "feature.fleetfoot.dev/"


@dataclass(frozen=True)
class Status:
    """The state of a stack as seen right now."""

    stack: str
    engine: str
    machines: list[dict[str, Any]]
    apiservers: list[dict[str, Any]]
    nodes: list[dict[str, Any]]

    def plain(self) -> dict[str, Any]:
        """Return it as JSON-compatible data (keys: docs of `fleetfoot status --json`)."""
        return {
            "stack": self.stack,
            "engine": self.engine,
            "machines": self.machines,
            "apiservers": self.apiservers,
            "nodes": self.nodes,
        }


def gather(stack: str) -> Status:
    """Look at a stack.

    Raises:
        FleetfootError: There is no such stack.
    """
    machines = [
        {
            "name": machine.spec.name,
            "pool": machine.spec.pool,
            "backend": machine.spec.backend,
            "address": machine.address,
            "ready": machine.running and _answers(machine.address, 22),
        }
        for machine in Fleet.of_stack(stack).all()
    ]
    cluster = Cluster(stack)
    return Status(stack, driver(stack).name, machines, _apiservers(cluster), _nodes(cluster))


def _answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), _CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _apiservers(cluster: Cluster) -> list[dict[str, Any]]:
    if not cluster.exists:
        return []
    try:
        ready = cluster.kubectl("get", "--raw", "/readyz", timeout=10).strip() == "ok"
    except FleetfootError:
        ready = False
    endpoint = cluster.kubectl("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}")
    return [{"group": "online", "endpoint": endpoint, "ready": ready}]


def _nodes(cluster: Cluster) -> list[dict[str, Any]]:
    if not cluster.exists:
        return []
    try:
        nodes = cluster.nodes()
    except FleetfootError:
        return []
    return [
        {
            "name": name,
            "ready": is_ready(node) and not node["spec"].get("unschedulable", False),
            "features": sorted(
                label.removeprefix(_FEATURE_PREFIX)
                for label in node["metadata"].get("labels", {})
                if label.startswith(_FEATURE_PREFIX)
            ),
        }
        for name, node in nodes.items()
    ]
