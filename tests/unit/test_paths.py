from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from fleetfoot.paths import write_private

if TYPE_CHECKING:
    from pathlib import Path


def test_many_may_write_one_private_file_at_once(tmp_path: Path) -> None:
    target = tmp_path / "secret"
    contents = [str(number) * 4096 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: write_private(target, contents[n % 8]), range(800)))
    assert target.read_text() in contents
    assert target.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write_private(tmp_path / "secret", "old")

    def full(_fd: int, _mode: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fchmod", full)
    with pytest.raises(OSError, match="No space left"):
        write_private(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]
