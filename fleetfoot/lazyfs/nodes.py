"""What nodes say of their lazy images, asked over SSH."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from fleetfoot.errors import FleetfootError
from fleetfoot.machines import ssh
from fleetfoot.machines.fleet import Fleet

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["read_from_file", "statuses", "touched"]

_RUN = "/run/fleetfoot-lazy"
_TOUCHED = """
for name in {names}; do
  file={run}/touched-$name.json
  test ! -e $file || {{ printf '%s ' $name && cat $file && echo; }}
done
"""
_AT_ONCE = 16
_SECONDS = 90


def statuses(stack: str, node: str = "") -> dict[str, dict[str, Any]]:
    """Return what nodes have mounted lazily.

    Args:
        stack: The environment.
        node: One machine; empty for all that have the snapshotter.

    Returns:
        By machine what `fleetfoot.lazyfs.node.report.status` describes; `error` alone for one that
        does not answer.

    Raises:
        FleetfootError: There is no such machine.
    """
    asked = {node: _address(stack, node)} if node else _addresses(stack)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        said = list(pool.map(lambda address: _status(stack, address), asked.values()))
    return {name: found for name, found in zip(asked, said, strict=True) if found is not None}


def touched(stack: str, node: str, layers: Iterable[str]) -> dict[str, list[int]]:
    """Return the blocks that containers of a node read, in the order of their first reads.

    Args:
        stack: The environment.
        node: The machine.
        layers: Sector images, each the hex of its table's SHA-256.

    Returns:
        Those of which the node says something.

    Raises:
        FleetfootError: There is no such machine, or it does not answer.
    """
    said = _asked(stack, _address(stack, node), _TOUCHED.format(run=_RUN, names=" ".join(layers)))
    rows = (line.partition(" ") for line in said.splitlines())
    return {name: json.loads(read) for name, _, read in rows}


def read_from_file(stack: str, node: str, layers: Iterable[str]) -> set[str]:
    """Return which layers a node reads from their files, past the server that would see it.

    Args:
        stack: The environment.
        node: The machine.
        layers: As for `touched`.
    """
    images = statuses(stack, node).get(node, {}).get("images", [])
    found = {each["layer"] for image in images for each in image["layers"] if each["way"] == "file"}
    return found & set(layers)


def _addresses(stack: str) -> dict[str, str]:
    return {machine.spec.name: machine.address for machine in Fleet.of_stack(stack).all()}


def _address(stack: str, node: str) -> str:
    known = _addresses(stack)
    if node not in known:
        fix = f"known: {', '.join(known)}"
        raise FleetfootError(f"there is no machine {node!r} in {stack}", fix=fix)
    return known[node]


def _status(stack: str, address: str) -> dict[str, Any] | None:
    """Return one node's; None for a machine without the snapshotter."""
    try:
        said = _asked(stack, address, f"cat {_RUN}/status.json 2>/dev/null || :")
        return dict(json.loads(said)) if said else None
    except (FleetfootError, ValueError) as error:
        return {"error": str(error)}


def _asked(stack: str, address: str, command: str) -> str:
    argv = [*ssh.command(stack), f"root@{address}", command]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise FleetfootError(f"{address} does not answer within {_SECONDS} s") from error
    if done.returncode:
        raise FleetfootError(f"{address} does not answer: {done.stderr.strip()[-200:]}")
    return done.stdout
