"""Two groups that `make test` runs at once (pytest-xdist): tests with machines, and all others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_MACHINES = {"e2e", "roles"}
_NICE = 19


def _group(item: pytest.Item) -> str:
    folder = item.path.relative_to(Path(__file__).parent).parts[0]
    return "machines" if folder in _MACHINES else "others"


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a group together, in their order: those with machines share them."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let the others have what machines leave: one that waits for a CPU runs into time limits."""
    if "PYTEST_XDIST_WORKER" in os.environ and _group(item) == "others":
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
