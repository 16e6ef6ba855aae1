"""One running environment that the tests of this folder share; brought up through two kills."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.stacks import Stack

if TYPE_CHECKING:
    from collections.abc import Iterator

KILLS = 2
ONLINE_MEMORY = "1536MiB"
OFFLINE_CONFIGMAPS = 20
_JOURNAL = (
    "systemctl list-units --failed --plain --no-legend;"
    " journalctl --priority=warning --lines=40 --no-pager --output=short | cut --characters=-300"
)


@pytest.fixture(scope="session")
def environment() -> Iterator[Stack]:
    """The running stack, brought up by runs of which the first ones were killed."""
    with Stack("e2e", 84) as stack:
        stack.config["fleetfoot:apiservers"]["online"] = {"memory": ONLINE_MEMORY}
        stack.config["fleetfoot:offline"] = {"objects": {"configmaps": OFFLINE_CONFIGMAPS}}
        stack.write()
        stack.kill_runs(KILLS)
        stack.fleetfoot("up")
        yield stack


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let tests of the shared environment come last, so that no other stack runs beside it."""
    items.sort(
        key=lambda item: (
            "environment" in getattr(item, "fixturenames", ()),
            item.get_closest_marker("ends_environment") is not None,
        )
    )


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Show what the environment looked like when a test failed."""
    outcome: Any = yield
    report = outcome.get_result()
    given = getattr(item, "funcargs", {}).values()
    for stack in (one for one in given if isinstance(one, Stack)):
        if not report.failed or not stack.file.exists():
            continue
        status = stack.fleetfoot("status", check=False).stdout
        report.sections.append(("status of the stack", status))
        logs = sorted((stack.paths.root / "logs").glob("*.log"))
        for log in logs:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            report.sections.append((f"end of {log.name}", tail))
        told = stack.fleetfoot("status", "--json", check=False)
        if told.returncode:
            continue
        for machine in json.loads(told.stdout)["machines"]:
            for log in ("console.log", "qemu.log"):
                file = stack.paths.machines / machine["name"] / log
                if file.exists():
                    said = file.read_text(errors="replace")[-2000:]
                    report.sections.append((f"end of {machine['name']}'s {log}", said))
            if machine["backend"] == "nspawn" and machine["ready"]:
                said = stack.ssh(machine["name"], _JOURNAL, check=False)
                report.sections.append((f"services of {machine['name']}", said))
