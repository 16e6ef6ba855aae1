from __future__ import annotations

import pytest

from fleetfoot.errors import FleetfootError
from fleetfoot.stack import driver


@pytest.mark.parametrize("name", ["state", "bench", "Prod", "a_b", "-a", "x" * 40, "../up", ""])
def test_a_stack_name_that_would_harm_is_refused(name: str) -> None:
    with pytest.raises(FleetfootError, match=r"stack name .* cannot be used"):
        driver.driver(name)


def test_a_stack_without_a_file_is_refused() -> None:
    with pytest.raises(FleetfootError, match=r"there is no Pulumi\.nowhere\.yaml"):
        driver.driver("nowhere")


def test_the_cli_gets_our_passphrase_not_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PULUMI_CONFIG_PASSPHRASE", "of another project")
    given = driver.environment()
    assert "PULUMI_CONFIG_PASSPHRASE" not in given
    assert given["PULUMI_CONFIG_PASSPHRASE_FILE"] == str(driver.PASSPHRASE)
