"""Order among resources: who depends on whom, and which deletions may run side by side."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from fleetfoot.engine import _urn

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Collection, Iterable

    from fleetfoot.engine._state import ResourceState


def dependents(
    root: ResourceState, resources: list[ResourceState], ignore: Collection[str]
) -> list[ResourceState]:
    """All that directly or not needs root, in state order; being its child does not count."""
    found: list[ResourceState] = []
    reached = {root.urn}
    for candidate in resources[resources.index(root) + 1 :]:
        needs = candidate.references() - _only_parent(candidate)
        if candidate.urn not in ignore and needs & reached:
            found.append(candidate)
            reached.add(candidate.urn)
    return found


def _only_parent(resource: ResourceState) -> set[str]:
    """The parent, unless the resource depends on it in another way too."""
    if not resource.parent:
        return set()
    others = resource.clone()
    others.parent = ""
    return {resource.parent} - others.references()


def needs(
    condemned: list[ResourceState], resources: list[ResourceState]
) -> dict[ResourceState, set[ResourceState]]:
    """For each condemned resource, the condemned ones that must outlive it."""
    order = {id(resource): index for index, resource in enumerate(resources)}
    children: dict[str, list[ResourceState]] = {}
    by_urn: dict[str, list[ResourceState]] = {}
    for resource in condemned:
        by_urn.setdefault(resource.urn, []).append(resource)
        children.setdefault(resource.parent, []).append(resource)
    found: dict[ResourceState, set[ResourceState]] = {}
    for resource in condemned:
        outlive: set[ResourceState] = set()
        parent_only = _only_parent(resource)
        for urn in resource.references():
            for target in by_urn.get(urn, ()):
                outlive.add(target)
                if not target.custom and urn not in parent_only:
                    # What depends on a component depends on what is in it.
                    outlive.update(children.get(urn, ()))
        # State order is a topological order, so a later one can never be needed.
        found[resource] = {target for target in outlive if order[id(target)] < order[id(resource)]}
    return found


def run_reversed(
    outlives: dict[ResourceState, set[ResourceState]],
    act: Callable[[ResourceState], bool],
    parallel: int,
    stopped: threading.Event,
) -> None:
    """Acts on each resource once all that need it are done; independent ones side by side.

    Args:
        outlives: As `needs` gives it.
        act: Returns whether it worked; after the first failure nothing new begins.
        parallel: How many at once.
        stopped: Set from outside to begin nothing new.
    """
    waiting: dict[ResourceState, int] = dict.fromkeys(outlives, 0)
    for targets in outlives.values():
        for target in targets:
            waiting[target] += 1
    ready = [resource for resource in reversed(outlives) if waiting[resource] == 0]
    running: dict[Future[bool], ResourceState] = {}
    with ThreadPoolExecutor(max_workers=max(parallel, 1)) as pool:
        while ready or running:
            if stopped.is_set():
                ready.clear()
            running.update({pool.submit(act, resource): resource for resource in ready})
            ready = []
            if not running:
                break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                resource = running.pop(future)
                if not future.result():
                    stopped.set()
                    continue
                for target in outlives[resource]:
                    waiting[target] -= 1
                    if waiting[target] == 0:
                        ready.append(target)


def is_stack(resource: ResourceState) -> bool:
    """Whether it is the root of the stack."""
    return resource.type == _urn.ROOT_TYPE


def in_order(resources: Iterable[ResourceState]) -> bool:
    """Whether each reference is to something that stands before it."""
    seen: set[str] = set()
    for resource in resources:
        if resource.references() - seen:
            return False
        seen.add(resource.urn)
    return True
