"""A plain display: one line a step, diagnostics as they come."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from fleetfoot.engine._events import EventSink, Severity, Step

_MARKS: Final = {
    "create": "+",
    "update": "~",
    "delete": "-",
    "create-replacement": "++",
    "delete-replaced": "--",
    "replace": "+-",
    "refresh": "<",
}


class PlainDisplay:
    """Writes steps and diagnostics as lines.

    Args:
        stream: Where to; standard error by default, so that output can be parsed.
        same: Whether unchanged resources are shown as well.
    """

    def __init__(self, stream: TextIO | None = None, *, same: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._same = same

    def resource_pre(self, step: Step) -> None:
        """Shows the beginning of a step that changes something."""
        if step.op in _MARKS and step.op != "refresh":
            why = f" [{', '.join(step.diffs)}]" if step.diffs else ""
            self._line(f" {_MARKS[step.op]:2} {step.type} {step.name}{why}")

    def resource_outputs(self, step: Step) -> None:
        """Shows the end of a step."""
        if step.op in _MARKS or self._same:
            self._line(f"    {step.type} {step.name}: {step.op} done")

    def resource_failed(self, step: Step) -> None:
        """Shows a failure."""
        self._line(f" !  {step.type} {step.name}: {step.op} failed: {step.error}")

    def diagnostic(self, severity: Severity, urn: str, message: str, *, streaming: bool) -> None:
        """Shows a message, except for debugging ones."""
        if severity == "debug" or streaming:
            return
        mark = "" if severity.startswith("info") else f"{severity}: "
        about = f"{urn.rsplit('::', 1)[-1]}: " if urn else ""
        self._line(f"{mark}{about}{message.rstrip()}")

    def log(self, message: str) -> None:
        """Says nothing."""

    def _line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class NoDisplay:
    """Shows nothing."""

    def resource_pre(self, step: Step) -> None:
        """Says nothing."""

    def resource_outputs(self, step: Step) -> None:
        """Says nothing."""

    def resource_failed(self, step: Step) -> None:
        """Says nothing."""

    def diagnostic(self, severity: Severity, urn: str, message: str, *, streaming: bool) -> None:
        """Says nothing."""

    def log(self, message: str) -> None:
        """Says nothing."""


class OneAtATime:
    """Hands events to a sink that need not be safe for threads.

    Args:
        sink: The sink.
    """

    def __init__(self, sink: EventSink) -> None:
        self._sink = sink
        self._lock = threading.Lock()

    def resource_pre(self, step: Step) -> None:
        """Hands on."""
        with self._lock:
            self._sink.resource_pre(step)

    def resource_outputs(self, step: Step) -> None:
        """Hands on."""
        with self._lock:
            self._sink.resource_outputs(step)

    def resource_failed(self, step: Step) -> None:
        """Hands on."""
        with self._lock:
            self._sink.resource_failed(step)

    def diagnostic(self, severity: Severity, urn: str, message: str, *, streaming: bool) -> None:
        """Hands on."""
        with self._lock:
            self._sink.diagnostic(severity, urn, message, streaming=streaming)

    def log(self, message: str) -> None:
        """Hands on."""
        with self._lock:
            self._sink.log(message)
