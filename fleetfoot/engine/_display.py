"""A run as lines; on a terminal also what is being worked on right now."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Final, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from fleetfoot.engine._events import WORDS, EventSink

if TYPE_CHECKING:
    from fleetfoot.engine._events import Severity, Step

_OURS: Final = "pulumi-python:dynamic/"
# Where there is no terminal, a line says so often what is still being worked on.
_HEARTBEAT_SECONDS: Final = 30.0
# Mark, what goes on, what was done.
_OPS: Final = {
    "create": ("+", "creating", "created"),
    "update": ("~", "updating", "updated"),
    "delete": ("-", "deleting", "deleted"),
    "create-replacement": ("++", "creating replacement", "replacement created"),
    "delete-replaced": ("--", "deleting what is replaced", "replaced one deleted"),
    "refresh": ("<", "looking at it", ""),
}


class Display(EventSink):
    """Writes steps and messages.

    Args:
        stream: Where to; standard error by default, so that output can be parsed.
        preview: Whether steps are only what would be done.
    """

    def __init__(self, stream: TextIO | None = None, *, preview: bool = False) -> None:
        self._preview = preview
        # Rich measures the terminal; elsewhere lines are never folded.
        self._console = Console(
            file=stream or sys.stderr, highlight=False, markup=False, emoji=False, soft_wrap=True
        )
        self._running: dict[int, tuple[Step, float]] = {}
        # Starting the live part draws it at once.
        self._lock = threading.RLock()
        self._live: Live | None = None
        self._closed = threading.Event()
        self._heart: threading.Thread | None = None

    def begin(self, step: Step) -> None:
        """Shows what is being worked on: below the lines on a terminal, else as a line."""
        if step.op not in _OPS or self._preview:
            return
        with self._lock:
            self._running[id(step)] = (step, time.monotonic())
            if self._console.is_terminal and self._live is None:
                self._live = Live(
                    get_renderable=self._table,
                    console=self._console,
                    transient=True,
                    redirect_stdout=False,
                    redirect_stderr=False,
                )
                self._live.start()
                # A killed run must not leave the terminal without one.
                self._console.show_cursor()
            if not self._console.is_terminal and self._heart is None:
                self._heart = threading.Thread(target=self._beat, daemon=True)
                self._heart.start()
        if not self._console.is_terminal and step.op != "refresh":
            self._line(step, f"{_OPS[step.op][1]}{_why(step)}")

    def end(self, step: Step) -> None:
        """Shows how it ended."""
        with self._lock:
            _, began = self._running.pop(id(step), (step, time.monotonic()))
        seconds = f"({time.monotonic() - began:.1f} s)"
        if step.error:
            self._line(step, f"failed {seconds}: {step.error}", "red")
        elif step.op == "refresh" and step.counted in WORDS:
            self._line(step, f"is {WORDS[step.counted][3]}{_why(step)}", "yellow")
        elif step.op in _OPS and step.op != "refresh":
            done = _OPS[step.op][2]
            self._line(
                step, f"would be {done}{_why(step)}" if self._preview else f"{done} {seconds}"
            )

    def say(self, severity: Severity, urn: str, message: str) -> None:
        """Shows a message, except for debugging ones."""
        if severity == "debug":
            return
        about = f"{urn.rsplit('::', 1)[-1]}: " if urn else ""
        mark = "" if severity.startswith("info") else f"{severity}: "
        style = {"warning": "yellow", "error": "red"}.get(severity, "")
        self._console.print(f"{mark}{about}{message.rstrip()}", style=style)

    def close(self) -> None:
        """Takes what is being worked on off the terminal."""
        self._closed.set()
        with self._lock:
            live, self._live = self._live, None
            self._running.clear()
        if live is not None:
            live.stop()

    def _beat(self) -> None:
        while not self._closed.wait(_HEARTBEAT_SECONDS):
            with self._lock:
                running = list(self._running.values())
            for step, began in running:
                seconds = time.monotonic() - began
                if seconds >= _HEARTBEAT_SECONDS:
                    self._line(step, f"still {_OPS[step.op][1]} ({seconds:.0f} s)")

    def _line(self, step: Step, text: str, style: str = "") -> None:
        mark = "!" if step.error else _OPS[step.op][0]
        kind = step.type.removeprefix(_OURS)
        self._console.print(f" {mark:2} {kind} {step.name} {text}", style=style)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1))
        with self._lock:
            running = list(self._running.values())
        for step, began in running:
            mark, verb, _ = _OPS[step.op]
            passed = f"{time.monotonic() - began:.0f} s"
            table.add_row("", mark, step.type.removeprefix(_OURS), step.name, verb, passed)
        return table


def _why(step: Step) -> str:
    return f" [{', '.join(step.diffs)}]" if step.diffs else ""
