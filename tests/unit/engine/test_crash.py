"""Killed at any moment: the next run converges, nothing is lost and nothing is there twice."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import Project

BODY = """
a = Item("a", "{v}")
b = Item("b", a.content, Opts(depends_on=[a]))
c = Item("c", item="c-{v}")
d = Item("d", fixed={v})
e = Item("e", d.size.apply(str))
"""
WANTED = {"a", "b", "c-2", "d", "e"}


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


def killed(project: Project, method: str = "up", **env: str) -> None:
    process = project.process(method, **env)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, output


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the program's first version is up."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = tmp_path_factory.mktemp("first")
        assert Project(folder, monkeypatch).up(BODY.format(v=1)).ok
        return folder


def converges(project: Project) -> None:
    summary = project.up(BODY.format(v=2))
    assert summary.ok, summary.errors
    assert set(project.objects()) == WANTED
    assert project.names() == ["a", "b", "c", "d", "e"]
    assert "pending_operations" not in project.state()
    ids = {item["id"] for item in project.state()["resources"] if ":Item::" in item["urn"]}
    assert ids == WANTED


@pytest.mark.parametrize(
    "moment",
    [
        f"{operation}:{when}"
        for operation in (
            *("create:a", "create:b", "update:a", "update:b"),
            *("create:c-2", "delete:c-1", "delete:d", "create:d"),
        )
        for when in ("before", "after")
    ],
)
def test_killed_in_the_middle_of_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: Path, moment: str
) -> None:
    # Creations of unchanged names are met by a first run, all else by a second.
    fresh = moment.startswith(("create:a", "create:b"))
    project = Project(tmp_path, monkeypatch, None if fresh else first)
    project.program(BODY.format(v=2))
    killed(project, FAULT=moment)
    converges(project)


@pytest.mark.parametrize("moment", ["delete:e:after", "delete:d:before", "delete:a:after"])
def test_killed_destroy_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: Path, moment: str
) -> None:
    project = Project(tmp_path, monkeypatch, first)
    killed(project, "destroy", FAULT=moment)
    # What exists is known to state, whatever moment it was.
    assert set(project.objects()) <= {item["id"] for item in project.state()["resources"][2:]}
    assert project.engine().destroy().ok
    assert project.objects() == {}
    assert "resources" not in project.state()


def test_killed_refresh_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: Path
) -> None:
    project = Project(tmp_path, monkeypatch, first)
    (project.store / "e.json").unlink()
    killed(project, "refresh", SAVES="1")
    assert project.names() == ["a", "b", "c", "d", "e"]
    assert project.engine().refresh().counts == {"refresh": 4, "delete": 1}
    assert project.up(BODY.format(v=1)).ok
    assert set(project.objects()) == {"a", "b", "c-1", "d", "e"}


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(saves=st.integers(2, 24))
def test_killed_between_two_saves(
    tmp_path_factory: pytest.TempPathFactory, first: Path, saves: int
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        project = Project(tmp_path_factory.mktemp("crash"), monkeypatch, first)
        project.program(BODY.format(v=2))
        process = project.process(SAVES=str(saves))
        process.communicate(timeout=60)
        converges(project)


def test_killed_creation_is_told_and_pending(project: Project) -> None:
    project.program('Item("a"); Item("b")')
    killed(project, FAULT="create:a:after")
    pending = project.state()["pending_operations"]
    assert {"creating"} == {item["type"] for item in pending}
    project.up('Item("a"); Item("b")')
    said = [message for severity, message in project.display.said if severity == "warning"]
    assert any("interrupted while creating" in message for message in said)


@pytest.mark.parametrize("content", ["x", "y"])
def test_pending_creation_that_the_cli_kept_is_cleared_or_told(
    project: Project, content: str
) -> None:
    """The CLI makes the resource anew and leaves the pending operation where it was."""
    project.program('Item("a", "x")')
    killed(project, FAULT="create:a:after")
    pending = project.state()["pending_operations"]
    project.up(f'Item("a", "{content}")')
    document = json.loads(project.state_file.read_text())
    document["checkpoint"]["latest"]["pending_operations"] = pending
    project.state_file.write_text(json.dumps(document))
    assert project.up().counts == {"same": 2}
    assert set(project.objects()) == {"a"}
    told = any("look for it yourself" in message for _, message in project.display.said)
    # Made from the same inputs, it is the same object.
    assert told == ("pending_operations" in project.state()) == (content == "y")
    assert project.engine().destroy().ok
    assert project.objects() == {}
    assert "pending_operations" not in project.state()


@pytest.mark.parametrize("provider", ["items.Item()", "items.Known()"])
@pytest.mark.parametrize("way", ["destroy", "undeclared"])
def test_killed_creation_of_what_is_wanted_no_more_is_undone(
    project: Project, provider: str, way: str
) -> None:
    project.program(f'Item("a", provider={provider})')
    killed(project, FAULT="create:a:after")
    assert set(project.objects()) == {"a"}
    project.forget_log()
    if way == "destroy":
        assert project.engine().destroy().ok
    else:
        assert project.up('Item("b")').ok
    assert "a" not in project.objects()
    assert "pending_operations" not in project.state()
    # With a known id it is deleted at once; else it is completed first, to learn the id.
    assert ("create a" in project.log()) == (provider == "items.Item()")


def test_children_of_a_killed_engine_end(project: Project) -> None:
    project.program("""
        import time, os, pathlib
        pathlib.Path(os.environ["STORE"], "pid").write_text(str(os.getpid()))
        time.sleep(600)
    """)
    process = project.process()
    pid = project.store / "pid"
    until(lambda: pid.exists() and bool(pid.read_text()), "the program runs")
    child = int(pid.read_text())
    process.kill()
    process.communicate()
    until(lambda: not Path(f"/proc/{child}").exists(), "the program has ended")


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_lets_running_steps_finish(
    project: Project, signal_number: signal.Signals
) -> None:
    (project.folder / "items.py").write_text(
        (project.folder / "items.py").read_text()
        + """
class Slow(Item):
    def create(self, props):
        (STORE / "begun").touch()
        while not (STORE / "go").exists():
            time.sleep(0.01)
        return super().create(props)
"""
    )
    project.program('a = Item("a", provider=items.Slow()); Item("b", a.name)')
    process = project.process()
    until((project.store / "begun").exists, "the step has begun")
    os.kill(process.pid, signal_number)
    (project.store / "go").touch()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert set(project.objects()) == {"a"}
    assert project.names() == ["a"]
    assert "pending_operations" not in project.state()
    assert project.up('Item("a"); Item("b")').ok


def test_second_interrupt_kills(project: Project) -> None:
    project.program("""
        import os, pathlib, time
        pathlib.Path(os.environ["STORE"], "begun").touch()
        time.sleep(600)
    """)
    (project.folder / "items.py").write_text(
        (project.folder / "items.py").read_text()
        + """
class Stuck(Item):
    def create(self, props):
        (STORE / "begun").touch()
        time.sleep(600)
"""
    )
    project.program('Item("a", provider=items.Stuck())')
    process = project.process()
    until((project.store / "begun").exists, "the step has begun")
    process.send_signal(signal.SIGINT)

    def gone() -> bool:
        process.send_signal(signal.SIGINT)
        return process.poll() is not None

    until(gone, "the engine has ended")
    process.communicate()
    assert [item["type"] for item in project.state()["pending_operations"]] == ["creating"]
