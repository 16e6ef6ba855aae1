"""Where commands write: results to standard output, all else to standard error."""

from __future__ import annotations

from typing import Any

from rich.console import Console

__all__ = ["cell", "err", "out"]

out = Console()
err = Console(stderr=True)


def cell(value: Any) -> str:
    """Return a value as a cell of a table."""
    if isinstance(value, bool):
        return "[green]yes[/]" if value else "[red]no[/]"
    return ", ".join(value) if isinstance(value, list) else str(value)
