"""Three groups that `make test` runs at once (pytest-xdist): stacks, roles, and all others."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    import pytest
    from xdist.remote import Producer

_CPU = Path("/sys/fs/cgroup/cpu")


class _Group(NamedTuple):
    """Tests that share machines.

    Attributes:
        name: The group's name.
        nice: How much it makes room for others.
        shares: CPU time that it has where a session has 1024; 0 is that of a session.
    """

    name: str
    nice: int = 0
    shares: int = 0


# What waits for a CPU runs into time limits, and stacks have the most of them: elections, clients
# that count, guests that boot. Two stacks at once would be each other's load.
_BY_FOLDER = {"e2e": _Group("stacks"), "roles": _Group("roles", 10, 512)}
_OTHERS = _Group("others", 19, 512)


def _group(nodeid: str) -> _Group:
    return _BY_FOLDER.get(PurePosixPath(nodeid).parts[1], _OTHERS)


class _Groups(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives each worker a group, in its order: tests of a group share machines.

    The mark xdist_group would say it, but xdist 3.8 writes it into IDs that pytest 9.2 keeps.
    """

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid).name


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Return what deals tests out."""
    return _Groups(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let the worker, and all that it starts, have what other groups leave."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    group = _group(item.nodeid)
    os.setpriority(os.PRIO_PROCESS, 0, group.nice)
    # Kernels that group by session (sched_autogroup) weigh niceness within one only, and every
    # worker of Ansible is a session of its own.
    if group.shares and _CPU.is_dir():
        folder = _CPU / "fleetfoot-tests" / group.name
        with contextlib.suppress(PermissionError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "cpu.shares").write_text(str(group.shares))
            (folder / "cgroup.procs").write_text(str(os.getpid()))


def pytest_unconfigure() -> None:
    """Remove the groups that are empty."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    for folder in (*(_CPU / "fleetfoot-tests").glob("*/"), _CPU / "fleetfoot-tests"):
        with contextlib.suppress(OSError):
            folder.rmdir()
