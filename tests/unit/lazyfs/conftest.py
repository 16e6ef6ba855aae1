"""A registry that others wrote, for all tests of lazy images."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from fleetfoot import artifacts

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def conforming() -> Iterator[str]:
    """Address of a registry that others wrote, with the referrers API."""
    program = artifacts.program("registry", "tests", print)
    with subprocess.Popen([str(program), "serve"], stdout=subprocess.PIPE, text=True) as serving:
        try:
            yield f"http://{next(iter(serving.stdout or ())).strip()}"
        finally:
            serving.kill()
