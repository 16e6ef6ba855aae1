"""The pinned programs are in the cache and say that they are of the pinned version."""

import pytest

from fleetfoot import artifacts

testinfra_hosts = ["local://"]
EVERY = [(module, program) for module in artifacts.modules() for program in module.programs]


@pytest.mark.parametrize(
    ("module", "program"), EVERY, ids=[program for _, program in EVERY]
)
def test_version(module, program):
    said = artifacts.reported_version(module, program, artifacts.directory())
    assert module.version.removeprefix("v") in said
