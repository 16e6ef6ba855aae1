"""Control machines that are replaced while the others hold etcd's majority and serve."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fleetfoot import etcd
from fleetfoot.errors import FleetfootError
from fleetfoot.machines import ssh
from fleetfoot.machines.fleet import Fleet
from fleetfoot.stack import onboarding

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

__all__ = ["require_members", "set_up", "wait_for_others"]

_PATIENCE = 300.0  # a machine that died is made again in that many seconds
_PAUSE = 1.0


def wait_for_others(stack: str, name: str) -> None:
    """Wait until the control plane's other machines run, if this one does.

    This run may be making one again that died; it has to come before one that runs goes.

    Args:
        stack: Whose control plane, as its last run of site.yml knew it.
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
                "bring it back (`fleetfoot up` without this change), then run it again",
            )
        time.sleep(_PAUSE)


def require_members(stack: str, name: str) -> None:
    """Require that etcd's members on other machines serve, before this one goes.

    A machine that was made again has none yet: it is set up first.

    Args:
        stack: Whose control plane, as its last run of site.yml knew it.
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
        stack: Whose control plane, as its last run of site.yml knew it.
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
    """Return names on the control plane's other machines, and addresses; none if this one is down.

    One that is down has nothing left to lose.
    """
    every = onboarding.recorded(stack)
    machine = Fleet.of_stack(stack).read(name)
    if every is None or machine is None or not machine.running:
        return {}
    hosts = {host: str(facts["ansible_host"]) for host, facts in every["hosts"].items()}
    return {host: address for host, address in hosts.items() if address != machine.address}


def _down(others: Mapping[str, str]) -> list[str]:
    up = {address for address in set(others.values()) if ssh.answers(address)}
    return sorted(host for host, address in others.items() if address not in up)


def _silent(stack: str, others: Mapping[str, str]) -> list[str]:
    """Return members of etcd that do not serve."""
    rows = etcd.members(stack, set(others.values()))
    return [row["member"] for row in rows if row["member"] in others and not row["ready"]]
