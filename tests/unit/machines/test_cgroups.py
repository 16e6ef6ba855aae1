"""What is written for a machine's groups, on a host that looks like cgroup v1."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleetfoot.machines import cgroups
from fleetfoot.machines.spec import IDLE


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for hierarchy in ("cpu", "memory", "unified", "systemd"):
        (tmp_path / hierarchy).mkdir()
    monkeypatch.setattr(cgroups, "_ROOT", tmp_path)
    return tmp_path


def test_a_machine_has_a_group_of_its_own_in_every_tree(root: Path) -> None:
    group = cgroups.Cgroup("stack", "machine")
    group.create(1.5, 512)
    below = "fleetfoot/stack/machine"
    assert group.procs == [
        root / tree / below / "cgroup.procs" for tree in ("cpu", "memory", "unified", "systemd")
    ]
    assert all((root / tree / below).is_dir() for tree in ("unified", "systemd"))
    assert (root / "cpu" / below / "cpu.cfs_quota_us").read_text() == "150000"


@pytest.mark.parametrize(
    ("weight", "files"),
    [(IDLE, {"cpu.idle": "1"}), (50, {"cpu.idle": "0", "cpu.shares": "512"})],
)
def test_a_budget_yields_by_its_weight(root: Path, weight: int, files: dict[str, str]) -> None:
    group = cgroups.Cgroup("stack", "machine")
    group.create(1, 512)
    folder = group.budget("batch", 0, 0, weight)["cpu"]
    bound = {"cpu.cfs_quota_us": "-1", **files}
    assert folder.is_relative_to(root / "cpu")
    assert {path.name: path.read_text() for path in folder.iterdir()} == bound
