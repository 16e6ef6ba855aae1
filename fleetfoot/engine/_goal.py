"""What the program asks for: one registration, parsed."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from fleetfoot.engine import _urn
from fleetfoot.engine._errors import UnsupportedError
from fleetfoot.engine._values import Properties, from_struct

if TYPE_CHECKING:
    from pathlib import Path

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6, "ns": 1e-9}


@dataclass(frozen=True)
class Alias:
    """A name that a resource had before: a whole URN, or the parts of it that differ."""

    urn: str = ""
    name: str = ""
    type: str = ""
    stack: str = ""
    project: str = ""
    parent: str = ""
    no_parent: bool = False


@dataclass
class Goal:
    """A registration: the resource as the program wants it."""

    type: str
    name: str
    custom: bool = False
    parent: str = ""
    inputs: Properties = field(default_factory=dict)
    protect: bool | None = None
    dependencies: list[str] = field(default_factory=list)
    property_dependencies: dict[str, list[str]] = field(default_factory=dict)
    provider: str = ""
    providers: dict[str, str] = field(default_factory=dict)
    version: str = ""
    delete_before_replace: bool | None = None
    ignore_changes: list[str] = field(default_factory=list)
    additional_secret_outputs: list[str] = field(default_factory=list)
    aliases: list[Alias] = field(default_factory=list)
    custom_timeouts: dict[str, float] = field(default_factory=dict)
    replace_on_changes: list[str] = field(default_factory=list)
    retain_on_delete: bool | None = None
    deleted_with: str = ""
    source_position: str = ""
    stack_trace: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def parse(cls, request: Any, root: Path) -> Goal:
        """Reads a RegisterResourceRequest; what only the CLI does is refused.

        Args:
            request: The message.
            root: The project's folder, for source positions.
        """
        _refuse(request)
        inputs = from_struct(request.object)
        dependencies = _unique(request.dependencies)
        if request.propertyDependencies:
            by_property = {
                key: _unique(value.urns) for key, value in request.propertyDependencies.items()
            }
        else:
            by_property = dict.fromkeys(inputs, dependencies)
        for key in inputs:
            by_property.setdefault(key, [])
        deletes_first = request.deleteBeforeReplaceDefined or request.deleteBeforeReplace
        return cls(
            type=request.type,
            name=request.name,
            custom=request.custom,
            parent=request.parent,
            inputs=inputs,
            protect=request.protect if request.HasField("protect") else None,
            dependencies=dependencies,
            property_dependencies=dict(sorted(by_property.items())),
            provider=request.provider,
            providers=dict(request.providers),
            version=request.version,
            delete_before_replace=request.deleteBeforeReplace if deletes_first else None,
            ignore_changes=list(request.ignoreChanges),
            additional_secret_outputs=list(request.additionalSecretOutputs),
            aliases=[_alias(alias) for alias in request.aliases]
            + [Alias(urn=urn) for urn in request.aliasURNs],
            custom_timeouts={
                key: seconds(getattr(request.customTimeouts, key))
                for key in ("create", "update", "delete", "read")
                if getattr(request.customTimeouts, key)
            },
            replace_on_changes=list(request.replaceOnChanges),
            retain_on_delete=(
                request.retainOnDelete if request.HasField("retainOnDelete") else None
            ),
            deleted_with=request.deletedWith,
            source_position=_position(request.sourcePosition, root),
            stack_trace=[
                {"sourcePosition": position} if (position := _position(frame.pc, root)) else {}
                for frame in request.stackTrace.frames
            ],
        )

    def inherit(self, parent: Goal) -> None:
        """Takes from the parent what the resource does not say itself, as the CLI does."""
        self.deleted_with = self.deleted_with or parent.deleted_with
        if self.protect is None:
            self.protect = parent.protect
        if self.retain_on_delete is None:
            self.retain_on_delete = parent.retain_on_delete
        if not self.provider and parent.provider:
            of = _urn.kind(_urn.provider_urn(parent.provider))
            if not self.custom or of == _urn.PROVIDER_PREFIX + _urn.package(self.type):
                self.provider = parent.provider


def _refuse(request: Any) -> None:
    hooks, trigger = request.hooks, request.replacement_trigger
    asked = {
        f"The remote component {request.type}": request.remote,
        "A transform": request.transforms,
        "A state migration": request.state_migrations,
        "The option import_": request.importId,
        f"The parameterised package of {request.type}": request.packageRef,
        "The option replace_with": request.replace_with,
        "The option replacement_trigger": trigger.WhichOneof("kind") not in (None, "null_value"),
        "A resource hook": any(getattr(hooks, field.name) for field in hooks.DESCRIPTOR.fields),
    }
    for what, given in asked.items():
        if given:
            raise UnsupportedError(f"{what} (resource {request.name!r})")


def _alias(message: Any) -> Alias:
    if message.urn:
        return Alias(urn=message.urn)
    spec = message.spec
    return Alias(
        name=spec.name,
        type=spec.type,
        stack=spec.stack,
        project=spec.project,
        parent=spec.parentUrn,
        no_parent=spec.noParent,
    )


def _unique(urns: Any) -> list[str]:
    return list(dict.fromkeys(urns))


def _position(message: Any, root: Path) -> str:
    """`project:///relative/path#line`, which does not name the checkout."""
    parts = urlsplit(message.uri)
    if parts.scheme != "file":
        return ""
    relative = os.path.relpath(unquote(parts.path), root)
    column = f",{message.column}" if message.column else ""
    return f"project:///{quote(relative)}#{message.line}{column}"


def seconds(duration: str) -> float:
    """A duration such as `1h30m` in seconds."""
    total, rest = 0.0, duration
    while rest:
        digits = len(rest) - len(rest.lstrip("0123456789."))
        letters = len(rest[digits:]) - len(rest[digits:].lstrip("hmsnu"))
        unit = rest[digits : digits + letters]
        if not digits or unit not in _UNITS:
            raise UnsupportedError(f"The timeout {duration!r}")
        total += float(rest[:digits]) * _UNITS[unit]
        rest = rest[digits + letters :]
    return total
