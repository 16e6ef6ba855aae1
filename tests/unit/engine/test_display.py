"""What people see: lines, progress on a terminal, sentences instead of tracebacks, summaries."""

from __future__ import annotations

import io
import os
import pty
import re
import stat
import subprocess

import pytest

from fleetfoot.engine import Display, Step, Summary

from .conftest import Project, drive

RAISING = '''
from fleetfoot.errors import FleetfootError

class Refusal(FleetfootError):
    """One that this module alone knows."""

def deeper():
    raise FleetfootError("memory is -1", "no machine was made", "give it a size above 0")
'''


def test_lines_where_there_is_no_terminal(project: Project) -> None:
    stream = io.StringIO()
    project.program('a = Item("a", "x"); Item("b", a.content)')
    assert project.engine(display=Display(stream)).up().ok
    lines = stream.getvalue().splitlines()
    assert " +  dynamic:Item a creating" in [line.replace("pulumi-python:", "") for line in lines]
    assert any(re.search(r"Item b created \(\d+\.\d s\)$", line) for line in lines)
    assert "\x1b" not in stream.getvalue()
    project.program('Item("a", "y")')
    stream = io.StringIO()
    assert project.engine(display=Display(stream)).up().ok
    assert "Item a updating [content]" in stream.getvalue()
    assert "Item b deleted" in stream.getvalue()


def test_a_preview_says_what_would_be(project: Project) -> None:
    project.up('Item("a", "x"); Item("b")')
    project.program('Item("a", "y"); Item("c")')
    stream = io.StringIO()
    assert project.engine(display=Display(stream, preview=True)).preview().ok
    told = stream.getvalue()
    assert "Item a would be updated [content]" in told
    assert "Item b would be deleted" in told
    assert "Item c would be created" in told
    assert " s)" not in told, "nothing took any time"


def test_terminal_shows_what_is_being_worked_on(project: Project) -> None:
    (project.folder / "items.py").write_text(
        (project.folder / "items.py").read_text()
        + """
class Slow(Item):
    def create(self, props):
        while not (STORE / "go").exists():
            time.sleep(0.01)
        return super().create(props)
"""
    )
    project.program('Item("slow", provider=items.Slow())')
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        drive(project), env={**os.environ, "TERM": "xterm", "COLUMNS": "100"}, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while not re.search(rb"Item\s+slow\s+creating\s+[1-9]\d* s", shown):
            shown += os.read(ours, 65536)
        (project.store / "go").touch()
        while b"slow created" not in shown:
            shown += os.read(ours, 65536)
    finally:
        if b"slow created" not in shown:
            process.kill()
        process.wait()
        os.close(ours)
    assert process.returncode == 0


@pytest.mark.parametrize("where", ["program", "apply", "provider"])
def test_what_a_user_can_act_on_is_one_sentence(project: Project, where: str) -> None:
    (project.folder / "raising.py").write_text(RAISING)
    (project.folder / "items.py").write_text(
        (project.folder / "items.py").read_text()
        + """
class Refusing(Item):
    def create(self, props):
        import raising
        try:
            raise KeyError("first")
        except KeyError:
            raising.deeper()
"""
    )
    stream = io.StringIO()
    project.program(
        {
            "program": "import raising; raising.deeper()",
            "apply": 'import raising; Item("a").content.apply(lambda _: raising.deeper())',
            "provider": 'Item("a", provider=items.Refusing())',
        }[where]
    )
    summary = project.engine(display=Display(stream)).up()
    assert not summary.ok
    told = stream.getvalue()
    assert "memory is -1; no machine was made; give it a size above 0" in told
    assert told.count("memory is -1") == 1, told
    assert 'File "' not in told
    path = project.backend / "traces" / "demo" / "dev.log"
    assert str(path) in told
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "in deeper" in path.read_text()
    # The next run's tracebacks replace these.
    project.up('raise ValueError("no sentence")')
    assert "in deeper" in path.read_text()


def test_long_tracebacks_come_through(project: Project) -> None:
    project.fail("create:a")
    items = project.folder / "items.py"
    items.write_text(items.read_text().replace("is to fail", "is to fail" + "!" * 100_000))
    summary = project.up('Item("a")')
    assert "create of a is to fail!!!" in summary.errors[0]


def test_summaries() -> None:
    summary = Summary("update", seconds=12.4)
    summary.counts.update({"create": 3, "same": 12, "replace": 1, "refresh": 9})
    assert str(summary) == (
        "Resources:\n    + 3 created\n    +- 1 replaced\n    12 unchanged\nDuration: 12 s"
    )
    summary = Summary("update", seconds=125)
    summary.counts.update({"same": 12})
    assert str(summary) == "Resources:\n    no change\n    12 unchanged\nDuration: 2 min 5 s"
    summary = Summary("preview")
    summary.counts.update({"delete": 2})
    assert "- 2 to delete" in str(summary)
    summary.errors.append("broken")
    summary.steps.append(Step("create", "u", "t", "n", error="broken"))
    assert "1 errored" in str(summary)
    assert "preview failed" in str(summary)


def test_nothing_to_do_is_said(project: Project) -> None:
    project.up('Item("a")')
    summary = project.up()
    assert summary.changes == 0
    assert "no change\n    2 unchanged" in str(summary)
