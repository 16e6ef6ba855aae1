"""An image of the environment's registry is made lazy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.stacks import Stack

pytestmark = pytest.mark.e2e


def test_an_image_of_the_registry_is_made_lazy(environment: Stack) -> None:
    pod = environment.get("pods", "--namespace=sample")["items"][0]
    named = pod["spec"]["containers"][0]["image"]
    environment.fleetfoot("lazy", "convert", named)
    assert "was attached already" in environment.fleetfoot("lazy", "convert", named).stdout
    shown = environment.fleetfoot("lazy", "inspect", named, "--json").stdout
    assert json.loads(shown)["subject"] == named.partition("@")[2]
    assert "is what its tables say" in environment.fleetfoot("lazy", "verify", named).stdout
    assert "is the ordinary one" in environment.fleetfoot("lazy", "diff", named).stdout
