"""The embedded Pulumi engine: the same program and state, without the Pulumi CLI.

`Engine` serves the public gRPC protocol to the unmodified SDK and keeps state in the CLI's own
files, so that either engine can take over from the other. See docs/adr/0002-embedded-engine.md.
"""

from fleetfoot.engine._display import Display
from fleetfoot.engine._engine import Engine
from fleetfoot.engine._errors import EngineError, LockedError, UnsupportedError
from fleetfoot.engine._events import EventSink, Severity, Step, Summary
from fleetfoot.engine._state import ResourceState

__all__ = [
    "Display",
    "Engine",
    "EngineError",
    "EventSink",
    "LockedError",
    "ResourceState",
    "Severity",
    "Step",
    "Summary",
    "UnsupportedError",
]
