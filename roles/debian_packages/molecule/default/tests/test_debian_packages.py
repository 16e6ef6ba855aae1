"""The packages are there; none of them brought what it merely recommends."""

import pytest


@pytest.mark.parametrize("name", ["patch", "python3"])
def test_installed(host, name):
    assert host.package(name).is_installed


def test_no_recommendations(host):
    assert not host.package("ed").is_installed
