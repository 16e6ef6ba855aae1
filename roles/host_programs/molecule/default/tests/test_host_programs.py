"""The pinned programs are in the cache and say that they are of the pinned version."""

import subprocess

import pytest

from fleetfoot import artifacts

testinfra_hosts = ["local://"]
EVERY = [(module, program) for module in artifacts.modules() for program in module.programs]


@pytest.mark.parametrize(("module", "program"), EVERY, ids=[program for _, program in EVERY])
def test_version(module, program):
    """CNI plug-ins say it on standard error."""
    command = [artifacts.directory() / program, *module.tells[program]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert module.version.removeprefix("v") in done.stdout + done.stderr
