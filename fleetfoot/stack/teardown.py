"""What is left when the resources are gone: whatever a half-made run left behind, then the folder.

Works from what is on the host, not from state, so that it also clears what no state knows of.
"""

from __future__ import annotations

import contextlib
import shutil

from fleetfoot.errors import FleetfootError
from fleetfoot.machines.fleet import Fleet
from fleetfoot.paths import StackPaths

__all__ = ["teardown"]


def teardown(stack: str, *, keep_state: bool) -> None:
    """Remove machines, network and files of a stack; backups stay, for they may be all there is.

    Args:
        stack: Its name.
        keep_state: Whether destroying failed: then folders stay, for the next try.
    """
    paths = StackPaths(stack)
    try:
        fleet = Fleet.of_stack(stack)
    except FleetfootError:
        fleet = None
    if fleet is not None:
        for folder in sorted(paths.machines.glob("*")):
            fleet.delete(folder.name)
        fleet.delete_network()
    if not keep_state:
        for left in {*paths.root.glob("*")} - {paths.backups}:
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # backups are there, or no folder was
            paths.root.rmdir()
        shutil.rmtree(paths.run, ignore_errors=True)
