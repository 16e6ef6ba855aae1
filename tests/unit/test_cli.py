"""Commands that print what others read."""

from __future__ import annotations

import json

import pytest
import yaml
from typer.testing import CliRunner

from fleetfoot import cli
from fleetfoot.cli import app
from fleetfoot.errors import FleetfootError
from fleetfoot.stack import sides
from fleetfoot.status import Status

URL = "https://api-offline.x.internal:7000"


def printed(*argv: str) -> str:
    done = CliRunner().invoke(app, ["sides", *argv], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_sides_are_printed_in_the_order_in_which_they_are_needed() -> None:
    wanted = [*sides.lanes(), *sides.admission(URL), *sides.workplace()]
    assert list(yaml.safe_load_all(printed("--offline-url", URL))) == wanted


def test_sides_are_those_of_every_namespace_that_is_named() -> None:
    both = ["batch", "training"]
    text = printed("--offline-url", URL, "--namespace", both[0], "--namespace", both[1])
    wanted = [*sides.lanes(both), *sides.admission(URL, both), *sides.workplace(both)]
    assert list(yaml.safe_load_all(text)) == wanted


def test_tokens_of_every_audience_of_online_are_refused() -> None:
    text = printed("--offline-url", URL, "--online-audience", "one", "--online-audience", "two")
    wanted = sides.admission(URL, online_audiences=["one", "two"])
    assert "['one', 'two']" in json.dumps(wanted)
    assert list(yaml.safe_load_all(text)) == [*sides.lanes(), *wanted, *sides.workplace()]
    with pytest.raises(FleetfootError, match="is no audience"):
        printed("--offline-url", URL, "--online-audience", "a'b")


@pytest.mark.parametrize(
    ("names", "told"),
    [(["default"], "belongs to online"), (["a", "a"], "2 times"), (["A_b"], "no DNS label")],
)
def test_namespaces_that_are_not_offlines_are_refused(names: list[str], told: str) -> None:
    argv = [word for name in names for word in ("--namespace", name)]
    with pytest.raises(FleetfootError, match=told):
        printed("--offline-url", URL, *argv)


def test_kubectl_can_read_each_object_by_itself() -> None:
    text = printed("--offline-url", URL)
    assert text.count("\napiVersion:") == text.count("\n---\n")
    assert "&id" not in text


@pytest.mark.parametrize("url", ["api-offline.x:6444", "https://api-offline.x", "http://a.x:1"])
def test_an_address_that_pods_could_not_use_is_refused(url: str) -> None:
    with pytest.raises(FleetfootError, match="is no address of apiservers"):
        printed("--offline-url", url)


def test_status_shows_every_part_with_its_alarms(monkeypatch: pytest.MonkeyPatch) -> None:
    member = {"member": "control-1", "ready": False, "leads": False, "size_mib": 0}
    found = Status(
        stack="mine",
        engine="embedded",
        machines=[{"name": "control-1", "ready": True}],
        apiservers=[{"group": "online", "ready": True}],
        etcd=[{**member, "alarms": ["DISK 3 MiB free"]}],
        nodes=[],
    )
    monkeypatch.setattr(cli, "gather", lambda _: found)
    done = CliRunner().invoke(app, ["status", "--stack", "mine"], catch_exceptions=False)
    assert done.exit_code == 0
    for said in ("machines", "apiservers", "etcd", "DISK 3 MiB free"):
        assert said in done.stdout
