"""The one exception that users see as a sentence instead of a traceback."""

from __future__ import annotations


class FleetfootError(Exception):
    """Something a user can act on: what is wrong, what follows, what to do.

    Args:
        what: The fact, naming the field or object.
        consequence: What does not happen because of it.
        fix: What to do about it.
    """

    def __init__(self, what: str, consequence: str = "", fix: str = "") -> None:
        self.what, self.consequence, self.fix = what, consequence, fix
        super().__init__("; ".join(part.rstrip(".") for part in (what, consequence, fix) if part))
