from __future__ import annotations

import pytest

from fleetfoot import artifacts

PROGRAMS = [(module, program) for module in artifacts.modules() for program in module.programs]


@pytest.mark.parametrize(("module", "program"), PROGRAMS, ids=[program for _, program in PROGRAMS])
def test_a_program_says_its_pinned_version(module: artifacts.Module, program: str) -> None:
    said = artifacts.reported_version(module, program, artifacts.directory())
    assert module.version.removeprefix("v") in said
