"""What the engine asks of a provider."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleetfoot.engine._values import Properties


@dataclass(frozen=True)
class Call:
    """The arguments of every operation; each reads what it needs.

    Attributes:
        urn: The resource.
        id: Its id, once it has one.
        inputs: What is asked for; for `read` and `delete`, what was.
        old_inputs: What was asked for before.
        old_outputs: What was made of it.
        ignore: The properties whose change is to be ignored.
        timeout: Seconds, 0 for the provider's own.
        preview: Whether nothing may change and inputs may be unknown.
        resumed: Whether an earlier run was killed while it created this resource.
    """

    urn: str
    id: str = ""
    inputs: Properties = field(default_factory=dict)
    old_inputs: Properties = field(default_factory=dict)
    old_outputs: Properties = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    timeout: float = 0.0
    preview: bool = False
    resumed: bool = False


@dataclass
class Checked:
    """Inputs as the provider wants them, and what is wrong with them."""

    inputs: Properties
    failures: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Diff:
    """What a change of inputs means.

    Attributes:
        changes: Whether anything changes; None when the provider leaves it to the engine.
        replaces: The properties that cannot change in place.
        changed: All properties that change.
        delete_before_replace: Whether the old object must go first.
    """

    changes: bool | None
    replaces: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    delete_before_replace: bool = False


@dataclass
class ReadResult:
    """An object as it is; an empty id means that it is gone."""

    id: str
    outputs: Properties
    inputs: Properties | None = None
    init_errors: list[str] = field(default_factory=list)


class Provider:
    """One configured provider; this one knows nothing yet and is met by previews alone.

    Calls may come from several threads at once.
    """

    def check(self, call: Call) -> Checked:
        """Validates inputs and fills in defaults."""
        return Checked(dict(call.inputs))

    def diff(self, _call: Call) -> Diff:
        """Compares what is with what is asked for."""
        return Diff(None)

    def create(self, _call: Call) -> tuple[str, Properties]:
        """Makes the object and returns its id and outputs."""
        return "", {}

    def update(self, _call: Call) -> Properties:
        """Changes the object in place and returns its outputs."""
        return {}

    def read(self, call: Call) -> ReadResult:
        """Looks at the object."""
        return ReadResult(call.id, call.old_outputs, call.inputs)

    def delete(self, call: Call) -> None:
        """Removes the object; one that is gone already is no error."""

    def pending_id(self, _call: Call) -> str:
        """The id that an interrupted create would have given, or "" if it cannot be known."""
        return ""

    def close(self) -> None:
        """Ends what the provider runs."""
