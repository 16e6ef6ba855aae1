"""Ansible modules of this project, to be called without Ansible."""

from __future__ import annotations

import importlib.util
from typing import Any

from fleetfoot.paths import PROJECT


def load(name: str) -> Any:
    """Return a module of plugins/modules."""
    file = PROJECT / "plugins/modules" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded
