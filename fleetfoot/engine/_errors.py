"""What the engine raises, and what providers raise at it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fleetfoot.errors import FleetfootError

if TYPE_CHECKING:
    from fleetfoot.engine._values import Properties


class EngineError(FleetfootError):
    """A run that cannot start or go on: what is wrong, what follows, what to do."""


class LockedError(EngineError):
    """Another run holds the stack's lock."""


class UnsupportedError(EngineError):
    """A program asks for something that only the Pulumi CLI does."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} is not supported by Fleetfoot's embedded engine",
            "Nothing was changed by this request",
            "Install the Pulumi CLI and run the same command; it takes over the same state",
        )


class ProviderError(Exception):
    """A provider refused or failed one operation."""


class ProviderGoneError(ProviderError):
    """The provider's process ended in the middle of an operation."""


class InitFailedError(ProviderError):
    """The object exists but did not become ready.

    Args:
        object_id: The id under which it is kept in state.
        outputs: Its live properties.
        inputs: Its inputs as last applied, or None for those that were asked for.
        reasons: What the object lacks, one sentence each.
    """

    def __init__(
        self,
        object_id: str,
        outputs: Properties,
        inputs: Properties | None,
        reasons: list[str],
    ) -> None:
        self.object_id, self.outputs, self.inputs, self.reasons = (
            object_id,
            outputs,
            inputs,
            reasons,
        )
        super().__init__("\n".join(reasons))
