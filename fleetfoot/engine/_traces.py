"""Errors that a user can act on are told as their sentence; their tracebacks go to a file."""

from __future__ import annotations

import os
import pydoc
import re
import threading
from typing import TYPE_CHECKING, Final

from fleetfoot.errors import FleetfootError

if TYPE_CHECKING:
    from pathlib import Path

_RAISED: Final = re.compile(r"^(fleetfoot(?:\.\w+)+): ", re.M)


class Traces:
    """The tracebacks of one run.

    Args:
        path: The file; the first traceback of a run replaces it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC

    def shorten(self, text: str) -> str:
        """A traceback that ends in a FleetfootError as its sentence; other text as it is."""
        raised = [match for match in _RAISED.finditer(text) if _is_ours(match[1])]
        if "Traceback (most recent call last):" not in text or not raised:
            return text
        sentence = text[raised[-1].end() :].strip()
        return f"{sentence}. (Traceback: {self._keep(text)})".replace("..", ".")

    def _keep(self, text: str) -> Path:
        with self._lock:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with os.fdopen(os.open(self._path, self._flags, 0o600), "w") as stream:
                os.fchmod(stream.fileno(), 0o600)
                stream.write(f"{text.rstrip()}\n\n")
            self._flags = os.O_WRONLY | os.O_APPEND
        return self._path


def _is_ours(name: str) -> bool:
    found = pydoc.locate(name)
    return isinstance(found, type) and issubclass(found, FleetfootError)
