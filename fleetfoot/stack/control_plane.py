"""Control machines that are replaced while the others hold etcd's majority and serve."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from fleetfoot import etcd
from fleetfoot.errors import FleetfootError
from fleetfoot.machines import ssh
from fleetfoot.machines.fleet import Fleet
from fleetfoot.stack import onboarding

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["bring_back", "require_kept", "require_members", "set_up", "wait_for_others"]

_PATIENCE = 300.0  # a machine that died is made again in that many seconds
_PAUSE = 1.0


def require_kept(stack: str, name: str, volumes: Collection[str], wanted: Collection[str]) -> None:
    """Require that what nobody else knows outlives a machine that is to be replaced.

    Args:
        stack: Whose control plane, as site.yml last made it.
        name: The machine.
        volumes: Its folders that do.
        wanted: Those of the machine that replaces it.

    Raises:
        FleetfootError: It has a database of one member, and that one's data would go with it, or
            stay where the new machine does not look.
    """
    every = onboarding.recorded(stack)
    if every is None or Fleet.of_stack(stack).read(name) is None:
        return
    others = _others(stack, name)
    for group, folder in etcd.DATA.items():
        hosts = every["children"].get(group, {}).get("hosts", {})
        if len(hosts) != 1 or others.keys() & hosts.keys():
            continue
        kept, found = etcd.volume_of(folder, volumes), etcd.volume_of(folder, wanted)
        if kept and kept != found:
            raise FleetfootError(
                f"{name} is to be replaced, has the only member of {group}, and keeps {folder} in"
                f" the volume {kept}, where its successor would not look",
                "the new machine would begin an empty cluster, so it stays as it is",
                f"leave {kept} in the pool's volumes, and no other around {folder}",
            )
        if not kept:
            raise FleetfootError(
                f"{name} is to be replaced, has the only member of {group}, and {folder} is in none"
                " of its volumes",
                "what the cluster knows would be gone, so it stays as it is",
                "take a backup, `fleetfoot down`, `fleetfoot up` with the folder in the pool's"
                " volumes, and restore it (docs/operations.md)",
            )


def bring_back(stack: str, name: str) -> None:
    """Start a machine that only went down, as it was; one that cannot start is left as it is.

    On its disk may be what others lack: after the host was restarted all of them are down.

    Args:
        stack: Whose control plane.
        name: The machine.
    """
    fleet = Fleet.of_stack(stack)
    machine = fleet.read(name)
    if machine is None or machine.running:
        return
    try:
        fleet.create(machine.spec, {})
    except FleetfootError as failed:
        print(f"{name} does not start as it was: {failed}", file=sys.stderr, flush=True)


def wait_for_others(stack: str, name: str) -> None:
    """Wait until the control plane's other machines run.

    This run may be making one again that died; it has to come before one that runs goes.

    Args:
        stack: Whose control plane, as site.yml last made it.
        name: The machine that is to be replaced.

    Raises:
        FleetfootError: Others stayed down.
    """
    deadline = time.monotonic() + _PATIENCE
    while down := _down(_others(stack, name)):
        if time.monotonic() > deadline:
            raise FleetfootError(
                f"{', '.join(down)} of the control plane is down",
                f"without {name} as well nobody might serve, so {name} stays as it is",
                "bring it back (`fleetfoot up` with the configuration and the checkout that made"
                " it), then run this again",
            )
        time.sleep(_PAUSE)


def require_members(stack: str, name: str) -> None:
    """Require that etcd's members on other machines serve, before this one goes.

    A machine that was made again has none yet: it is set up first.

    Args:
        stack: Whose control plane, as site.yml last made it.
        name: The machine that is to be replaced.

    Raises:
        FleetfootError: A member does not serve, or a machine could not be set up.
    """
    others = _others(stack, name)
    if silent := _silent(stack, others):
        set_up(stack, name, {others[member] for member in silent})
        silent = _silent(stack, others)
    if silent:
        raise FleetfootError(
            f"{', '.join(silent)} of etcd does not serve",
            f"without {name} as well there might be no majority, so {name} stays as it is",
            "see `fleetfoot status` and docs/operations.md, then run it again",
        )


def set_up(stack: str, name: str, addresses: Collection[str]) -> None:
    """Run site.yml on some machines of a control plane of several.

    Args:
        stack: Whose control plane, as site.yml last made it.
        name: What the run is for; its log is `site-NAME.log`.
        addresses: Theirs.

    Raises:
        FleetfootError: It failed; the message carries the end of its log.
    """
    every = onboarding.recorded(stack)
    hosts = every["hosts"] if every else {}
    own = [host for host, facts in hosts.items() if facts["ansible_host"] in addresses]
    if 0 < len(own) < len(hosts):
        onboarding.run(
            {
                "stack": stack,
                "name": f"site-{name}",
                "playbook": "site.yml",
                "inventory": {"all": every},
                "limit": [*own, "localhost"],
            }
        )


def _others(stack: str, name: str) -> dict[str, str]:
    """Return names on the control plane's other machines, and addresses."""
    every = onboarding.recorded(stack)
    if every is None:
        return {}
    own = Fleet.of_stack(stack).network.address(name)
    hosts = {host: str(facts["ansible_host"]) for host, facts in every["hosts"].items()}
    return {host: address for host, address in hosts.items() if address != own}


def _down(others: Mapping[str, str]) -> list[str]:
    up = {address for address in set(others.values()) if ssh.answers(address)}
    return sorted(host for host, address in others.items() if address not in up)


def _silent(stack: str, others: Mapping[str, str]) -> list[str]:
    """Return members of etcd that do not serve."""
    rows = etcd.members(stack, set(others.values()))
    return [row["member"] for row in rows if row["member"] in others and not row["ready"]]
