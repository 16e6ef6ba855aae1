"""What a host must have: looked at on this one, and on hosts that lack something."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fleetfoot.host import bootstrap, preflight
from fleetfoot.paths import PROJECT, cache_dir

if TYPE_CHECKING:
    from pathlib import Path


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


def test_check_host_tells_and_changes_nothing() -> None:
    argv = [sys.executable, "-m", "fleetfoot.host.bootstrap", "--check-only"]
    said = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    assert "The local stack can run here." in said
    assert "Fleetfoot will install and change on this host" in said
