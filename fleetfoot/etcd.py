"""Members of a stack's etcds, asked on their machines."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleetfoot.errors import FleetfootError
from fleetfoot.machines import ssh
from fleetfoot.paths import StackPaths
from fleetfoot.shell import run

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["DATA", "members", "volume_of"]

#: Unit of each group's database, and where it keeps its data.
_UNITS = {"etcd": "etcd", "etcd_events": "etcd-events"}
DATA = {group: f"/var/lib/{unit}" for group, unit in _UNITS.items()}

_LOG_MIB = 64  # size of the log file that etcd makes next


def volume_of(folder: str, volumes: Collection[str]) -> str | None:
    """Return which of the volumes, which a replaced machine leaves behind, has a folder."""
    within = [volume for volume in volumes if Path(folder).is_relative_to(volume)]
    return max(within, key=len, default=None)


def members(stack: str, running: Collection[str]) -> list[dict[str, Any]]:
    """Ask each member for itself: who leads, how large its database is, what it is alarmed by.

    Args:
        stack: Whose control plane, as site.yml last made it.
        running: Addresses of machines that are worth asking.

    Returns:
        A row for each, with the keys that docs/operations.md names; one that does not answer is not
        `ready`.
    """
    every = StackPaths(stack).control_plane()
    if every is None:
        return []
    known = [
        (name, every["hosts"][name]["ansible_host"], unit)
        for group, unit in _UNITS.items()
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
            "ready": bool(said["leader"]),
            "leads": said["leader"] == said["header"]["member_id"],
            "size_mib": said["dbSize"] >> 20,
            "alarms": [*said.get("errors", []), *full],
        }

    with ThreadPoolExecutor() as pool:
        return list(pool.map(row, known))
