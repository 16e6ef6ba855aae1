"""What runs: machines, apiservers by group, nodes with their features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fleetfoot import etcd
from fleetfoot.cluster import Cluster, is_ready
from fleetfoot.errors import FleetfootError
from fleetfoot.machines import ssh
from fleetfoot.machines.fleet import Fleet
from fleetfoot.stack.driver import driver
from fleetfoot.stack.inventory import API_PORTS

__all__ = ["Status", "gather"]

_FEATURE_PREFIX = "feature.fleetfoot.dev/"


@dataclass(frozen=True)
class Status:
    """The state of a stack as seen right now."""

    stack: str
    engine: str
    machines: list[dict[str, Any]]
    apiservers: list[dict[str, Any]]
    etcd: list[dict[str, Any]]
    nodes: list[dict[str, Any]]

    def plain(self) -> dict[str, Any]:
        """Return it as JSON-compatible data (keys: docs/operations.md, "Status as data")."""
        return {
            "stack": self.stack,
            "engine": self.engine,
            "machines": self.machines,
            "apiservers": self.apiservers,
            "etcd": self.etcd,
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
            "ready": machine.running and ssh.answers(machine.address),
        }
        for machine in Fleet.of_stack(stack).all()
    ]
    asked = [Cluster(stack, name, patience=0) for name in API_PORTS]
    groups = [group for cluster in asked for group in _apiservers(cluster)]
    running = {str(machine["address"]) for machine in machines if machine["ready"]}
    nodes = _nodes(Cluster(stack, patience=0))
    return Status(stack, driver(stack).name, machines, groups, etcd.members(stack, running), nodes)


def _apiservers(cluster: Cluster) -> list[dict[str, Any]]:
    if not cluster.exists:
        return []
    try:
        ready = cluster.kubectl("get", "--raw", "/readyz", timeout=10).strip() == "ok"
    except FleetfootError:
        ready = False
    return [{"group": cluster.group, "endpoint": cluster.endpoint(), "ready": ready}]


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
