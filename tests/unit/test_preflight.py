"""What a host must have: looked at on this one, and on hosts that lack something."""

from __future__ import annotations

import shutil
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from fleetfoot.host import bootstrap, preflight
from fleetfoot.paths import PROJECT, cache_dir

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def any_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this suite itself fills does not count."""
    monkeypatch.setattr(preflight, "MIN_DISK_GIB", 0)
    monkeypatch.setattr(preflight, "MIN_FREE_GIB", 0)


@pytest.mark.usefixtures("any_disk")
def test_this_host_serves() -> None:
    found = preflight.checks(PROJECT, cache_dir())
    assert [check.what for check in found if not check.ok] == []


def test_all_reasons_are_told_together_and_nothing_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preflight, "MIN_MEMORY_GIB", 1 << 20)
    monkeypatch.setattr(preflight, "MIN_DISK_GIB", 1 << 30)
    monkeypatch.setattr(preflight, "SUPPORTED", {"plan9": {"4"}})
    monkeypatch.setenv("FLEETFOOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bootstrap, "install", lambda: pytest.fail("installed all the same"))
    monkeypatch.setattr(sys, "argv", ["bootstrap"])
    assert bootstrap.main() == 1
    said = capsys.readouterr()
    refused = [line for line in said.out.splitlines() if line.startswith("  NO ")]
    assert len(refused) == 4, said.out
    assert said.out.count("fix: ") == 4
    assert "nothing was changed" in said.err
    assert not (tmp_path / "cache").exists()


def test_down_needs_no_host_that_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "MIN_MEMORY_GIB", 1 << 20)
    monkeypatch.setattr(bootstrap, "ready", lambda: True)
    monkeypatch.setattr(sys, "argv", ["bootstrap", "--venv-only"])
    assert bootstrap.main() == 0


def test_what_is_there_already_counts_and_some_must_be_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, cache = tmp_path / "project", tmp_path / "cache"
    for folder in (project / ".fleetfoot", cache):
        folder.mkdir(parents=True)
    gib = 1024**3
    free = 10 * gib
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))

    def served() -> list[bool]:
        return [check.ok for check in preflight.checks(project, cache) if "GiB free" in check.what]

    assert served() == [False, False]
    monkeypatch.setattr(preflight, "size_of", lambda _: 5 * gib)
    assert served() == [True, True]
    free = 2 * gib
    monkeypatch.setattr(preflight, "size_of", lambda _: 50 * gib)
    assert served() == [False, False]


def test_a_folders_size_is_what_it_takes(tmp_path: Path) -> None:
    (tmp_path / "within").mkdir()
    (tmp_path / "within" / "file").write_bytes(b"x" * (1 << 20))
    (tmp_path / "again").hardlink_to(tmp_path / "within" / "file")
    with (tmp_path / "sparse").open("wb") as stream:
        stream.truncate(1 << 30)
    assert 1 << 20 <= preflight.size_of(tmp_path) < 1 << 21
    assert preflight.size_of(tmp_path / "none") == 0


@pytest.mark.usefixtures("any_disk")
def test_check_host_tells_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bootstrap", "--check-only"])
    assert bootstrap.main() == 0
    said = capsys.readouterr().out
    assert "The local stack can run here." in said
    assert "Fleetfoot will install and change on this host" in said
