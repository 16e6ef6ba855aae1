"""Two groups that `make test` runs at once (pytest-xdist): tests with machines, and all others."""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    import pytest
    from xdist.remote import Producer

_MACHINES = {"e2e", "roles"}
_NICE = 19


def group(nodeid: str) -> str:
    """Return the group of a test, by its folder."""
    return "machines" if PurePosixPath(nodeid).parts[1] in _MACHINES else "others"


class _Groups(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives each worker a group, in its order: tests with machines share them.

    The mark xdist_group would say it, but xdist 3.8 writes it into IDs that pytest 9.2 keeps.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Return what deals tests out."""
    return _Groups(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let the others have what machines leave: one that waits for a CPU runs into time limits."""
    if "PYTEST_XDIST_WORKER" in os.environ and group(item.nodeid) == "others":
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
