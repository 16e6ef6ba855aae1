"""What a run tells while it goes on, and what it says in the end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, Protocol

Severity = Literal["debug", "info", "info#err", "warning", "error"]


@dataclass
class Step:
    """One step on one resource.

    Attributes:
        op: same, create, update, replace, delete, refresh, or the CLI's name of a part of a
            replacement (create-replacement, delete-replaced).
        urn: The resource.
        type: Its type token.
        name: Its name.
        diffs: The properties that made the step necessary.
        error: Why it failed, or "".
    """

    op: str
    urn: str
    type: str
    name: str
    diffs: list[str] = field(default_factory=list)
    error: str = ""


@dataclass
class Summary:
    """What a run did.

    Attributes:
        kind: preview, update, refresh or destroy.
        counts: Steps by op; a replacement counts once, as `replace`.
        steps: All steps except those on default providers, in the order of their end.
        errors: All that went wrong, targeted or not.
        ok: Whether all went well.
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
        return sum(count for op, count in self.counts.items() if op not in ("same", "refresh"))


class EventSink(Protocol):
    """Where a run's events go. Calls come from several threads, one at a time."""

    def resource_pre(self, step: Step) -> None:
        """A step begins."""

    def resource_outputs(self, step: Step) -> None:
        """A step ended well."""

    def resource_failed(self, step: Step) -> None:
        """A step failed; `step.error` says why."""

    def diagnostic(self, severity: Severity, urn: str, message: str, *, streaming: bool) -> None:
        """The program, a provider or the engine says something.

        Args:
            severity: How bad it is; `info#err` is what a child printed on standard error.
            urn: What it is about, or "".
            message: What is said.
            streaming: Whether more parts of the same message follow or went before.
        """

    def log(self, message: str) -> None:
        """The engine says what it does, for those who look closely."""
