"""Files that one task writes: module text_files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fleetfoot.paths import PROJECT

CONTENTS = {"one.py": "ONE = 1\n", "parts/deep/two.py": "", "ü.txt": "ß"}


def run(path: Path, contents: dict[str, str], *, check: bool = False) -> dict[str, Any]:
    given = {"path": str(path), "contents": contents, "_ansible_check_mode": check}
    argv = [sys.executable, str(PROJECT / "plugins/modules/text_files.py")]
    done = subprocess.run(
        argv,
        input=json.dumps({"ANSIBLE_MODULE_ARGS": given}),
        capture_output=True,
        text=True,
        check=False,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def below(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): file.read_text() for file in path.rglob("*.*")}


def test_all_are_written_once(tmp_path: Path) -> None:
    root = tmp_path / "library"
    assert run(root, CONTENTS, check=True)["changed"]
    assert not root.exists()
    assert sorted(run(root, CONTENTS)["written"]) == sorted(CONTENTS)
    assert below(root) == CONTENTS
    again = run(root, CONTENTS)
    assert (again["changed"], again["written"]) == (False, [])


def test_only_what_differs_is_written_and_what_is_not_named_stays(tmp_path: Path) -> None:
    run(tmp_path, CONTENTS)
    (tmp_path / "own.txt").write_text("mine")
    (tmp_path / "one.py").chmod(0o666)
    (tmp_path / "parts").chmod(0o700)
    other = CONTENTS | {"ü.txt": "other"}
    assert sorted(run(tmp_path, other)["written"]) == ["one.py", "ü.txt"]
    assert below(tmp_path) == other | {"own.txt": "mine"}
    assert (tmp_path / "one.py").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "parts").stat().st_mode & 0o777 == 0o755


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("mine")
    (tmp_path / "one.py").symlink_to("other")
    assert run(tmp_path, CONTENTS)["changed"]
    assert (tmp_path / "other").read_text() == "mine"
    assert not (tmp_path / "one.py").is_symlink()


def test_folders_above_can_be_entered(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        run(tmp_path / "a/b", CONTENTS)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "a").rglob("*") if path.is_dir()}
    assert modes | {(tmp_path / "a").stat().st_mode & 0o777} == {0o755}


@pytest.mark.parametrize("name", ["", ".", "../one", "/one", "a/../one", "./one", "a//one", "a/"])
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    told = run(tmp_path, {"good.txt": "", name: ""})
    assert told["failed"]
    assert f"{name!r} is no path below {tmp_path}; nothing was written" in told["msg"]
    assert not any(tmp_path.iterdir())
