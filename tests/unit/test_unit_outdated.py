"""What makes a unit outdated: module unit_outdated."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.modules import load

PROGRAM = sys.executable


@pytest.fixture(scope="module")
def module() -> Any:
    return load("unit_outdated")


def test_systemd_says_when_in_utc(module: Any) -> None:
    assert module.since("Thu 1970-01-01 00:01:40.250000 UTC") == 100.25


def test_unit_drop_ins_and_programs_are_its_own(module: Any) -> None:
    found = {
        "FragmentPath": "/etc/systemd/system/one.service",
        "DropInPaths": "/etc/one.conf /run/systemd/system.control/one.service.d/50-CPUWeight.conf",
        "ExecStart": f"{{ path={PROGRAM} ; argv[]={PROGRAM} /bin/sh /nowhere /etc --a=/bin/ls ; }}",
    }
    assert module.own_files(found) == [
        "/etc/systemd/system/one.service",
        "/etc/one.conf",
        *sorted(["/bin/sh", PROGRAM]),
    ]


def test_only_what_was_changed_later_is_newer(module: Any, tmp_path: Path) -> None:
    for name, changed in (("old", 100), ("same", 200), ("new", 300)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (changed, changed))
    files = [str(tmp_path / name) for name in ("old", "same", "new", "absent")]
    assert module.newer(files, 200) == [str(tmp_path / "new")]
