"""One run and its phases."""

from __future__ import annotations

import importlib
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fleetfoot.engine import _urn
from fleetfoot.engine._deployment import Deployment
from fleetfoot.engine._dynamic import DynamicProvider
from fleetfoot.engine._planner import Planner
from fleetfoot.engine._program import run_program
from fleetfoot.engine._registry import Package, Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from fleetfoot.engine._events import EventSink, Summary
    from fleetfoot.engine._project import Config, Project
    from fleetfoot.engine._provider import Provider
    from fleetfoot.engine._snapshot import Snapshot
    from fleetfoot.engine._traces import Traces
    from fleetfoot.engine._values import Properties


@dataclass
class Run:
    """What a run needs, and what it does.

    Attributes:
        project: What Pulumi.yaml says.
        stack: The stack's name.
        config: Its configuration.
        snapshot: Its resources, as the run changes them.
        sink: Where events go.
        traces: Where tracebacks go.
        summary: What is counted.
        parallel: How many steps at once.
        lock: The descriptor of the stack's lock, which children inherit.
        interrupted: Set when the user wants no more of it.
        on_stop: Called then, once running steps have ended.
    """

    project: Project
    stack: str
    config: Config
    snapshot: Snapshot
    sink: EventSink
    traces: Traces
    summary: Summary
    parallel: int
    lock: int | None
    interrupted: threading.Event = field(default_factory=threading.Event)
    on_stop: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.registry = Registry(
            {"pulumi-python": lambda: Package(self._dynamic), "kubernetes": self._kubernetes},
            self.snapshot.resources(),
        )
        self.deployment = Deployment(
            self.snapshot,
            self.registry,
            self.sink,
            self.summary,
            parallel=self.parallel,
            preview=self.summary.kind == "preview",
        )
        if self.snapshot.pending:
            self._warn_of_pending()

    def _dynamic(self, inputs: Properties) -> Provider:
        return DynamicProvider(
            self.project.name,
            self.project.directory,
            inputs,
            lock=self.lock,
            log=lambda line: self.sink.say("info", "", line),
            shorten=self.traces.shorten,
        )

    def _kubernetes(self) -> Package:
        package: Package = _load_kubernetes().KubernetesPackage(
            self.interrupted, lambda urn, text: self.sink.say("warning", urn, text)
        )
        return package

    def stop(self) -> None:
        """Lets running steps finish and begins nothing new."""
        self.interrupted.set()
        self.deployment.fail("The run was interrupted; what was done is in state")
        self.on_stop()

    def program(self, targets: Collection[str]) -> None:
        """Runs the program, then deletes what it no longer declares."""
        base = self.snapshot.resources()
        if any(item.type == _urn.PROVIDER_PREFIX + "kubernetes" for item in base):
            # It loads while the program does.
            threading.Thread(target=_load_kubernetes, daemon=True).start()
        planner = Planner(
            self.stack,
            self.project.name,
            base,
            self.registry,
            preview=self.deployment.preview,
            targets=targets,
            interrupted=[item.resource for item in self.snapshot.interrupted],
        )
        run_program(self, planner)
        for urn in sorted(set(targets) - planner.urns - {item.urn for item in base}):
            self.deployment.fail(
                f"The target {urn} is neither in the program nor in state. Nothing was deleted. "
                "Name one of the stack's URNs"
            )
        if not self.summary.ok:
            return
        undeclared = {item for item in base if item.urn not in planner.kept}
        condemned = [
            item for item in self.snapshot.resources() if item.delete or item in undeclared
        ]
        if targets:
            condemned = [item for item in condemned if item.delete or item.urn in targets]
        self.deployment.delete_all(condemned, self.snapshot.resources())
        self.deployment.clear_interrupted()

    def refresh(self) -> None:
        """Reads every resource."""
        self.deployment.refresh_all(self.snapshot.resources())

    def destroy(self) -> None:
        """Deletes every resource."""
        resources = self.snapshot.resources()
        self.deployment.clear_interrupted(frozenset(item.urn for item in resources))
        self.deployment.delete_all(resources, resources)
        self.deployment.clear_interrupted()

    def _warn_of_pending(self) -> None:
        pending = self.snapshot.pending
        interrupted = "\n".join(
            f"  * {item.resource.urn}, interrupted while {item.type}" for item in pending
        )
        self.sink.say(
            "warning",
            "",
            f"An earlier run was cut off with {len(pending)} pending operations:\n"
            f"{interrupted}\n"
            "Interrupted creations are repeated, or undone when they are declared no more; "
            "everything else is compared and repeated as usual.",
        )


def _load_kubernetes() -> Any:
    """The client takes a second to load, which other programs need not spend."""
    return importlib.import_module("fleetfoot.engine._kubernetes")
