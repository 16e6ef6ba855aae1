"""What every bench gives back: arms, their ratios, their goals, and what they were measured on."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleetfoot import __version__, artifacts
from fleetfoot.shell import run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Goal", "Report", "medians", "now", "summary"]


@dataclass(frozen=True)
class Goal:
    """What a bench should show.

    Attributes:
        limit: The bound.
        measured: What was measured.
        at_least: Whether the limit is the smallest good value; else it is the largest.
    """

    limit: float
    measured: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether it was reached; what is not a number does not."""
        reached = self.measured >= self.limit if self.at_least else self.measured <= self.limit
        return bool(reached)

    def plain(self) -> dict[str, Any]:
        """Return it as JSON-compatible data."""
        bound = "at_least" if self.at_least else "at_most"
        return {bound: self.limit, "measured": round(self.measured, 6), "met": self.met}


@dataclass(frozen=True)
class Report:
    """The outcome of a bench.

    Attributes:
        name: The bench's name.
        arms: Arm to metric to value; seconds, bytes and counts
            unless its name says otherwise.
        ratios: Ratios of arms; the keys stay stable.
        rounds: Arm to the metrics of each round, in order.
        started: When it began, ISO 8601 with zone.
        setup: How it was measured: sizes and counts.
        goals: Name to what should have been reached, and whether it was.
    """

    name: str
    arms: Mapping[str, Mapping[str, float]]
    ratios: Mapping[str, float]
    rounds: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    started: str = ""
    setup: Mapping[str, Any] = field(default_factory=dict)
    goals: Mapping[str, Goal] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Return it as JSON-compatible data."""
        return {
            "name": self.name,
            "arms": {arm: _rounded(metrics) for arm, metrics in self.arms.items()},
            "ratios": _rounded(self.ratios),
            "goals": {name: goal.plain() for name, goal in self.goals.items()},
            "rounds": {arm: [_rounded(r) for r in rounds] for arm, rounds in self.rounds.items()},
            "setup": dict(self.setup),
            "host": host(),
            "versions": versions(),
            "started": self.started,
        }

    def write(self, path: Path) -> None:
        """Write the JSON file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.plain(), indent=1) + "\n")


def _rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    return {key: round(value, 3) for key, value in metrics.items()}


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each metric that every round has."""
    common = [key for key in rounds[0] if all(key in each for each in rounds)]
    return {key: statistics.median(each[key] for each in rounds) for key in common}


def summary(
    rounds: Sequence[Mapping[str, float]],
    *,
    sums: Sequence[str] = (),
    worst: Sequence[str] = (),
) -> dict[str, float]:
    """Return one value for each metric: the median, unless a median would hide what counts.

    Args:
        rounds: The metrics of each round.
        sums: Counts, of which one in any round counts.
        worst: What is as bad as its worst round.
    """
    return {
        **medians(rounds),
        **{key: sum(each.get(key, 0.0) for each in rounds) for key in sums},
        **{key: max(each.get(key, 0.0) for each in rounds) for key in worst},
    }


def now() -> str:
    """Return the time, ISO 8601 with zone."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def host() -> dict[str, Any]:
    """Return what the host is: processors, memory in MiB, kernel."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpus": os.cpu_count(),
        "cpu": models[0] if models else platform.processor(),
        "memory_mib": memory >> 20,
        "kernel": platform.release(),
    }


def versions() -> dict[str, str]:
    """Return the versions of what was measured."""
    qemu = run(["qemu-system-x86_64", "--version"]).split()
    programs = json.loads((artifacts.directory() / "versions.json").read_text())
    return {"fleetfoot": __version__, "qemu": qemu[3], **programs}
