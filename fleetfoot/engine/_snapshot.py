"""The checkpoint while a run changes it: what is done, what has begun, what is still as it was."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from fleetfoot.engine import _urn
from fleetfoot.engine._state import Checkpoint, Operation, ResourceState

if TYPE_CHECKING:
    from collections.abc import Callable


class Snapshot:
    """Resources of this run first, in the order in which they were done; then the old ones left.

    That order is a topological one, as each resource is registered after what it needs.

    Args:
        base: What state held before.
        save: Writes a checkpoint; None in previews.
    """

    def __init__(self, base: Checkpoint, save: Callable[[Checkpoint], None] | None) -> None:
        self._base = base
        self._save = save
        self._new: list[ResourceState] = []
        self._gone: set[ResourceState] = set()
        self._begun: list[Operation] = []
        self._interrupted = list(base.pending)
        self._lock = threading.Lock()

    @property
    def pending(self) -> list[Operation]:
        """All that an earlier run began and did not end."""
        return list(self._interrupted)

    @property
    def interrupted(self) -> list[Operation]:
        """The creations that an earlier run began and nobody has cleared up yet."""
        return [item for item in self._interrupted if item.type == "creating"]

    def begin(self, resource: ResourceState, operation: str) -> Operation:
        """Records that a step on the resource is about to begin."""
        with self._lock:
            begun = Operation(resource, operation)
            self._begun.append(begun)
            self._write()
            return begun

    def end(
        self,
        begun: Operation | None = None,
        *,
        gone: ResourceState | None = None,
        new: ResourceState | None = None,
        cleared: Operation | None = None,
        write: bool = True,
    ) -> None:
        """Records the end of a step.

        Args:
            begun: The operation that `begin` returned.
            gone: The old resource that is no more, or that `new` stands for now.
            new: The resource as it is now.
            cleared: An interrupted creation that is dealt with.
            write: Whether anything changed that the file must show.
        """
        with self._lock:
            if begun is not None:
                self._begun.remove(begun)
            if gone is not None:
                self._gone.add(gone)
            if new is not None and new not in self._new:
                self._new.append(new)
            if cleared is not None:
                self._interrupted.remove(cleared)
            if write:
                self._write()

    def resources(self) -> list[ResourceState]:
        """All resources as of now."""
        return [item for item in (*self._new, *self._base.resources) if item not in self._gone]

    def write(self) -> None:
        """Saves what was only changed in place."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        if self._save is not None:
            # Interrupted updates and deletes need no memory: their resources are still here.
            self._save(
                Checkpoint(
                    self._base.stack,
                    _renamed(self.resources()),
                    self._begun + self.interrupted,
                    self._base.metadata,
                )
            )


def _renamed(resources: list[ResourceState]) -> list[ResourceState]:
    """The resources with every former URN replaced by the present one; aliases are not stored."""
    if not any(item.aliases for item in resources):
        return resources
    now = {alias: item.urn for item in resources for alias in item.aliases}
    result = []
    for item in resources:
        copy = item.clone()
        if not item.aliases and item.parent in now:
            parent = now[item.parent]
            parts = item.urn.split("::", 3)
            stack = parts[0].removeprefix("urn:pulumi:")
            now[item.urn] = _urn.make(stack, parts[1], parent, item.type, item.name)
        copy.aliases = []
        copy.urn = now.get(item.urn, item.urn)
        copy.parent = now.get(item.parent, item.parent)
        copy.deleted_with = now.get(item.deleted_with, item.deleted_with)
        copy.dependencies = [now.get(urn, urn) for urn in item.dependencies]
        copy.property_dependencies = {
            key: [now.get(urn, urn) for urn in urns]
            for key, urns in item.property_dependencies.items()
        }
        if item.provider:
            urn = _urn.provider_urn(item.provider)
            copy.provider = f"{now.get(urn, urn)}::{_urn.provider_id(item.provider)}"
        result.append(copy)
    return result
