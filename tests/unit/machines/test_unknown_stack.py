"""A stack that is asked for and not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fleetfoot.errors import FleetfootError
from fleetfoot.machines import fleet
from fleetfoot.paths import StackPaths

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("stack", "fix"),
    [
        ("ha", "`make up STACK=ha` makes it"),
        ("lcoal", r"configured are .*ha.*local.*copy Pulumi\.local\.yaml to Pulumi\.lcoal\.yaml"),
    ],
)
def test_the_way_to_it_is_told(
    stack: str, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "StackPaths", lambda name: StackPaths(name, tmp_path))
    with pytest.raises(FleetfootError, match=fix):
        fleet.Fleet.of_stack(stack)
