"""What a run tells while it goes on, and what it says in the end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final, Literal

Severity = Literal["debug", "info", "info#err", "warning", "error"]

#: Mark and words of each counted step: what was done, what a preview says, what refresh saw.
WORDS: Final = {
    "create": ("+", "created", "to create", "created"),
    "update": ("~", "updated", "to update", "changed"),
    "replace": ("+-", "replaced", "to replace", "replaced"),
    "delete": ("-", "deleted", "to delete", "gone"),
}


@dataclass
class Step:
    """One step on one resource.

    Attributes:
        op: same, create, update, delete, refresh, or the CLI's name of a part of a replacement
            (create-replacement, delete-replaced).
        urn: The resource.
        type: Its type token.
        name: Its name.
        diffs: The properties that made the step necessary.
        error: Why it failed, or "".
        counted: What it counts as in the summary; "" for nothing.
    """

    op: str
    urn: str
    type: str
    name: str
    diffs: list[str] = field(default_factory=list)
    error: str = ""
    counted: str = ""


@dataclass
class Summary:
    """What a run did.

    Attributes:
        kind: preview, update, refresh or destroy.
        counts: Steps by what they count as; a replacement counts once, as `replace`.
        steps: All steps except those on default providers, in the order of their end.
        errors: All that went wrong, targeted or not.
        seconds: How long it took.
    """

    kind: str
    counts: Counter[str] = field(default_factory=Counter)
    steps: list[Step] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing went wrong."""
        return not self.errors

    @property
    def changes(self) -> int:
        """How many resources were, or in a preview would be, changed."""
        return sum(self.counts[op] for op in WORDS)

    def __str__(self) -> str:
        form = {"preview": 2, "refresh": 3}.get(self.kind, 1)
        lines = [
            f"{w[0]} {self.counts[op]} {w[form]}" for op, w in WORDS.items() if self.counts[op]
        ]
        same = self.counts["refresh" if self.kind == "refresh" else "same"]
        if failed := sum(bool(step.error) for step in self.steps):
            lines.append(f"{failed} errored")
        if not lines and self.ok:
            lines.append("no change")
        if same:
            lines.append(f"{same} unchanged")
        if not self.ok:
            lines.append(f"{self.kind} failed")
        return "\n".join(
            ["Resources:", *(f"    {line}" for line in lines), f"Duration: {_time(self.seconds)}"]
        )


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class EventSink:
    """Where a run's events go; this one ignores them. Calls come from several threads at once."""

    def begin(self, step: Step) -> None:
        """A step begins."""

    def end(self, step: Step) -> None:
        """A step ended; `step.error` says why it failed, if it did."""

    def say(self, severity: Severity, urn: str, message: str) -> None:
        """The program, a provider or the engine says something.

        Args:
            severity: How bad it is; `info#err` is what a child printed on standard error.
            urn: What it is about, or "".
            message: What is said.
        """

    def close(self) -> None:
        """The run is over."""
