"""The packages are there."""

import pytest


@pytest.mark.parametrize("name", ["mtools", "patch", "ed"])
def test_installed(host, name):
    assert host.package(name).is_installed
