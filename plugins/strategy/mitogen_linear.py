"""Strategy plug-in: the linear strategy, with Mitogen in place of a Python start per task.

Mitogen keeps one interpreter on each host for the whole run: a third of the time at native speed,
far less on an emulated guest. The package brings the same file in a folder whose path depends on
the Python release; this one finds it by import.
"""

from __future__ import annotations

from typing import Any

import ansible_mitogen.loaders
import ansible_mitogen.strategy
from ansible.plugins.loader import filter_loader, test_loader

DOCUMENTATION = """
name: mitogen_linear
short_description: Linear strategy over Mitogen
description:
  - Runs tasks as the linear strategy does, in one long-lived interpreter on each host.
author: Fleetfoot maintainers
"""

_LINEAR = ansible_mitogen.loaders.strategy_loader.get("linear", class_only=True)


class StrategyModule(ansible_mitogen.strategy.StrategyMixin, _LINEAR):  # type: ignore[misc]  # Ansible is untyped
    """The plug-in."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # Each task is a fork of this process: what it has loaded is not read again each time.
        for loader in (filter_loader, test_loader):
            list(loader.all())
