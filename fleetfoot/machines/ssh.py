"""Entering machines: the stack's key and its pinned host keys, nothing else."""

from __future__ import annotations

from fleetfoot.paths import StackPaths

__all__ = ["command"]


def command(stack: str) -> list[str]:
    """Return ssh and its options for machines of a stack; `root@ADDRESS` comes behind."""
    paths = StackPaths(stack)
    options = [f"UserKnownHostsFile={paths.known_hosts}", "StrictHostKeyChecking=yes"]
    options += ["IdentitiesOnly=yes", "LogLevel=ERROR"]
    return ["ssh", "-i", str(paths.ssh_key), *(f"-o{option}" for option in options)]
