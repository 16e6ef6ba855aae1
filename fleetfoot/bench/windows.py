"""Windows of a run, taken in turns: a host whose speed drifts is the same in each phase."""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Window", "plain", "turns"]


@dataclass(frozen=True)
class Window:
    """A part of a run; times are seconds since the epoch.

    Attributes:
        phase: What clients do in it.
        begin: When they begin to do so.
        counts: From when on it counts.
        end: When the next one begins.
    """

    phase: str
    begin: float
    counts: float
    end: float


def turns(leads: Mapping[str, float], seconds: float, cycles: int, begin: float) -> list[Window]:
    """Return windows of all phases, one after the other, again and again.

    Args:
        leads: Phase to the seconds of each of its windows that do not count.
        seconds: How long a window counts.
        cycles: Windows of each phase.
        begin: Of the first one.
    """
    phases = list(leads) * cycles
    begins = [begin]
    for phase in phases:
        begins.append(begins[-1] + leads[phase] + seconds)
    return [
        Window(phase, start, start + leads[phase], end)
        for phase, (start, end) in zip(phases, pairwise(begins), strict=True)
    ]


def plain(windows: Iterable[Window]) -> str:
    """Return windows as k6/windows.js reads them: times in ms."""
    rows = [astuple(window) for window in windows]
    return json.dumps([[phase, *(round(at * 1000) for at in times)] for phase, *times in rows])
