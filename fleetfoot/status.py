"""What runs: machines, apiservers by group, nodes with their features."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fleetfoot.cluster import Cluster, is_ready
from fleetfoot.errors import FleetfootError
from fleetfoot.machines import ssh
from fleetfoot.machines.fleet import Fleet
from fleetfoot.paths import StackPaths
from fleetfoot.shell import run
from fleetfoot.stack.driver import driver
from fleetfoot.stack.inventory import API_PORTS

__all__ = ["Status", "gather"]

_CONNECT_SECONDS = 2
_FEATURE_PREFIX = "feature.fleetfoot.dev/"
_LOG_MIB = 64  # size of the log file that etcd makes next


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
            "ready": machine.running and _answers(machine.address, 22),
        }
        for machine in Fleet.of_stack(stack).all()
    ]
    groups = [group for name in API_PORTS for group in _apiservers(Cluster(stack, name))]
    running = {str(machine["address"]) for machine in machines if machine["ready"]}
    nodes = _nodes(Cluster(stack))
    return Status(stack, driver(stack).name, machines, groups, _etcd(stack, running), nodes)


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
    return [{"group": cluster.group, "endpoint": cluster.endpoint(), "ready": ready}]


def _etcd(stack: str, running: set[str]) -> list[dict[str, Any]]:
    """Ask each member for itself: who leads, how large its database is, what it is alarmed by."""
    every = StackPaths(stack).control_plane()
    if every is None:
        return []
    members = [
        (name, every["hosts"][name]["ansible_host"], unit)
        for group, unit in {"etcd": "etcd", "etcd_events": "etcd-events"}.items()
        # A stack that was made before Events had an etcd of their own has no such group yet.
        for name in every["children"].get(group, {}).get("hosts", {})
    ]

    def row(member: tuple[str, str, str]) -> dict[str, Any]:
        name, address, unit = member
        # The disk first: a member that it has no room for does not answer.
        ask = (
            f"df --output=avail --block-size=1M /var/lib/{unit} | tail -n 1;"
            f" set -a; . /etc/{unit}/ctl.env; etcdctl endpoint status --write-out=json || true"
        )
        silent = {"member": name, "ready": False, "leads": False, "size_mib": 0, "alarms": []}
        try:
            if address not in running:
                raise FleetfootError(f"{name} does not run")
            free, *told = run([*ssh.command(stack), f"root@{address}", ask]).splitlines()
            room = int(free)
        except (FleetfootError, ValueError):
            return silent
        full = [f"DISK {room} MiB free"] if room < _LOG_MIB else []
        answers = json.loads(told[0]) if told else None
        if not answers:  # etcdctl says null
            return {**silent, "alarms": full}
        said = answers[0]["Status"]
        return {
            "member": name,
            "ready": True,
            "leads": said["leader"] == said["header"]["member_id"],
            "size_mib": said["dbSize"] >> 20,
            "alarms": [*said.get("errors", []), *full],
        }

    with ThreadPoolExecutor() as pool:
        return list(pool.map(row, members))


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
