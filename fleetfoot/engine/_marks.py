"""What steps do to a resource besides its change: secrets marked, references mended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fleetfoot.engine._values import Secret, equal, seal

if TYPE_CHECKING:
    from fleetfoot.engine._state import ResourceState


def mark_secrets(resource: ResourceState) -> None:
    """Makes secret what the program says is, and what came from a secret input."""
    for key in resource.additional_secret_outputs:
        if key in resource.outputs:
            resource.outputs[key] = seal(resource.outputs[key])
    for key, value in resource.inputs.items():
        if isinstance(value, Secret) and key in resource.outputs:
            resource.outputs[key] = seal(resource.outputs[key])


def share_ciphertexts(old: ResourceState, new: ResourceState) -> None:
    """Lets unchanged secrets keep their ciphertexts, so that state changes only where it must."""
    for before, after in ((old.inputs, new.inputs), (old.outputs, new.outputs)):
        for key, value in after.items():
            _share(before.get(key), value)


def _share(before: Any, after: Any) -> None:
    if isinstance(after, Secret):
        if isinstance(before, Secret) and after.sealed is None and equal(before, after):
            after.sealed = before.sealed
    elif isinstance(after, dict) and isinstance(before, dict):
        for key, value in after.items():
            _share(before.get(key), value)
    elif isinstance(after, list) and isinstance(before, list):
        for old, new in zip(before, after, strict=False):
            _share(old, new)


# What may differ without being worth a write, as for the CLI.
_UNWRITTEN = frozenset(
    {"source_position", "stack_trace", "created", "modified", "aliases", "ignore_changes"}
)


def differs(old: ResourceState, new: ResourceState) -> bool:
    """Whether the new one is worth a write."""
    if set(old.dependencies) != set(new.dependencies):
        return True
    return any(
        not equal(value, getattr(new, name))
        for name, value in vars(old).items()
        if name not in _UNWRITTEN and name not in ("dependencies", "property_dependencies", "extra")
    )


def forget(gone: set[ResourceState], resources: list[ResourceState]) -> None:
    """Takes every reference to vanished resources out of those that stay."""
    urns = {item.urn: item.parent for item in gone}
    for resource in resources:
        while resource.parent in urns:
            resource.parent = urns[resource.parent]
        resource.dependencies = [urn for urn in resource.dependencies if urn not in urns]
        resource.property_dependencies = {
            key: left
            for key, found in resource.property_dependencies.items()
            if (left := [urn for urn in found if urn not in urns])
        }
        if resource.deleted_with in urns:
            resource.deleted_with = ""
