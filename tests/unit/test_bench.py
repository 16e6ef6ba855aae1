"""What benches write: stable keys, medians, a picture."""

import json
from pathlib import Path

import pytest

from fleetfoot.bench import plot
from fleetfoot.bench.report import Report, medians, now
from fleetfoot.machines.ledger import STAGES


def test_medians_are_of_metrics_that_every_round_has() -> None:
    rounds = [{"a": 3.0, "b": 1.0}, {"a": 1.0}, {"a": 2.0, "b": 5.0}]
    assert medians(rounds) == {"a": 2.0}


def test_the_file_has_the_stable_keys(tmp_path: Path) -> None:
    arms = {"generic": {"ssh": 6.00049}, "serverless": {"ssh": 2.0}}
    report = Report("boot", arms, {"ssh": 3.0}, {"generic": [{"ssh": 6.0}]}, now())
    target = tmp_path / "deep/boot.json"
    report.write(target)
    data = json.loads(target.read_text())
    assert set(data) == {"name", "arms", "ratios", "rounds", "host", "versions", "started"}
    assert data["arms"]["generic"]["ssh"] == pytest.approx(6.0)
    assert data["host"]["cpus"] >= 1
    assert data["host"]["memory_mib"] > 0
    assert {"fleetfoot", "qemu", "kubelet", "containerd"} <= set(data["versions"])


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_picture_is_drawn(tmp_path: Path, suffix: str, magic: bytes) -> None:
    target = tmp_path / f"boot.{suffix}"
    bars = {"generic": {"kernel": 4.0, "node": 20.0}, "serverless": {"kernel": 2.0}}
    plot.stages(target, bars, STAGES, "stages")
    assert target.read_bytes().startswith(magic)
