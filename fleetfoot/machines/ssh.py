"""Entering machines: the stack's key and its pinned host keys, nothing else."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from fleetfoot.errors import FleetfootError
from fleetfoot.machines import process
from fleetfoot.paths import StackPaths

if TYPE_CHECKING:
    from pathlib import Path

    from fleetfoot.machines.spec import Placement

__all__ = ["answers", "command", "wait"]

_CONNECT_SECONDS, _PORT = 2, 22


def command(stack: str) -> list[str]:
    """Return ssh and its options for machines of a stack; `root@ADDRESS` comes behind."""
    paths = StackPaths(stack)
    options = [f"UserKnownHostsFile={paths.known_hosts}", "StrictHostKeyChecking=yes"]
    options += ["IdentitiesOnly=yes", "LogLevel=ERROR"]
    # A machine that dies says no farewell: after a minute its sessions end, begun or not.
    options += ["ConnectTimeout=60", "ServerAliveInterval=15", "ServerAliveCountMax=4"]
    return ["ssh", "-i", str(paths.ssh_key), *(f"-o{option}" for option in options)]


def answers(address: str) -> bool:
    """Whether somebody listens at a machine's SSH port."""
    try:
        socket.create_connection((address, _PORT), _CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def wait(
    name: str,
    place: Placement,
    daemon: process.Daemon,
    *,
    log: Path,
    console: Path,
    timeout: float,
) -> None:
    """Wait until a machine answers on SSH.

    Args:
        name: Its name.
        place: Where it stands.
        daemon: Its process.
        log: Output of that process.
        console: Output of the machine.
        timeout: Seconds.

    Raises:
        FleetfootError: It ended, or did not answer in time.
    """
    if place.network.wait_for(place.address, 22, timeout=timeout, alive=daemon):
        return
    process.still_running(daemon, log, name)
    raise FleetfootError(
        f"machine {name} did not answer on SSH within {timeout:.0f} s",
        "it cannot be configured",
        f"see its console in {console}",
    )
