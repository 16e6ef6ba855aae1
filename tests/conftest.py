"""Three groups that `make test` runs at once (pytest-xdist): stacks, roles, and all others."""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    import pytest
    from xdist.remote import Producer

#: By folder: the group, and how much it makes room for others. What waits for a CPU runs into time
#: limits, and stacks have the most of them: elections, clients that count, guests that boot.
_GROUPS = {"e2e": ("stacks", 0), "roles": ("roles", 10)}
_OTHERS = ("others", 19)


def group(nodeid: str) -> str:
    """Return the group of a test."""
    return _group(nodeid)[0]


def _group(nodeid: str) -> tuple[str, int]:
    return _GROUPS.get(PurePosixPath(nodeid).parts[1], _OTHERS)


class _Groups(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives each worker a group, in its order: tests of a group share machines.

    The mark xdist_group would say it, but xdist 3.8 writes it into IDs that pytest 9.2 keeps.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Return what deals tests out."""
    return _Groups(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let the worker, and all that it starts, have what other groups leave."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.setpriority(os.PRIO_PROCESS, 0, _group(item.nodeid)[1])
