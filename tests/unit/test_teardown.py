"""What is left of a stack that was taken down."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fleetfoot.paths import StackPaths, write_private
from fleetfoot.stack import teardown

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StackPaths:
    """A stack with files and no machines, in a folder of the test's own."""
    found = StackPaths("unit-teardown", tmp_path)
    monkeypatch.setattr(teardown, "StackPaths", lambda _stack: found)
    write_private(found.pki / "etcd" / "ca.key", "key")
    write_private(found.kubeconfig, "config")
    return found


def test_nothing_is_left(paths: StackPaths) -> None:
    teardown.teardown(paths.stack, keep_state=False)
    assert not paths.root.exists()


def test_backups_outlive_it(paths: StackPaths) -> None:
    file = write_private(paths.backups / "before.tar", "all")
    teardown.teardown(paths.stack, keep_state=False)
    assert list(paths.root.iterdir()) == [paths.backups]
    assert file.read_text() == "all"


def test_a_try_that_failed_keeps_all(paths: StackPaths) -> None:
    teardown.teardown(paths.stack, keep_state=True)
    assert (paths.pki / "etcd" / "ca.key").exists()
