"""Resources and the checkpoint, version 3, read and written without loss."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Final

import fleetfoot
from fleetfoot.engine import _urn
from fleetfoot.engine._errors import EngineError
from fleetfoot.engine._values import Decrypt, Encrypt, Properties, from_state, to_state

# What the CLI writes here is its own version; it only ever shows it.
ENGINE_VERSION: Final = f"fleetfoot-{fleetfoot.__version__}"

_VERSION: Final = 3
_ALWAYS: Final = {"urn", "custom", "type"}


@dataclass(eq=False)
class ResourceState:
    """One resource as the stack knows it. Identity, not content, makes two of them equal."""

    urn: str
    type: str
    custom: bool = False
    delete: bool = False
    id: str = ""
    inputs: Properties = field(default_factory=dict)
    outputs: Properties = field(default_factory=dict)
    parent: str = ""
    protect: bool = False
    taint: bool = False
    external: bool = False
    dependencies: list[str] = field(default_factory=list)
    init_errors: list[str] = field(default_factory=list)
    provider: str = ""
    property_dependencies: dict[str, list[str]] = field(default_factory=dict)
    pending_replacement: bool = False
    additional_secret_outputs: list[str] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)
    custom_timeouts: dict[str, float] = field(default_factory=dict)
    retain_on_delete: bool = False
    deleted_with: str = ""
    created: str = ""
    modified: str = ""
    source_position: str = ""
    stack_trace: list[dict[str, str]] = field(default_factory=list)
    ignore_changes: list[str] = field(default_factory=list)
    replace_on_changes: list[str] = field(default_factory=list)
    # Keys of newer CLIs, kept as they are.
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The last part of the URN."""
        return _urn.name(self.urn)

    def references(self) -> set[str]:
        """The URNs that must exist before this resource and go after it."""
        found = {*self.dependencies, self.parent, self.deleted_with}
        found.update(urn for urns in self.property_dependencies.values() for urn in urns)
        found.update(self.extra.get("replaceWith", ()))
        if self.provider:
            found.add(_urn.provider_urn(self.provider))
        found.discard("")
        return found

    def clone(self) -> ResourceState:
        """An independent copy, secrets shared so that their ciphertexts stay."""
        return copy.copy(self)

    def to_json(self, encrypt: Encrypt) -> dict[str, Any]:
        """The resource as the checkpoint stores it; empty fields are left out."""
        document: dict[str, Any] = {}
        for key, attribute in _ATTRIBUTES.items():
            value = getattr(self, attribute)
            if attribute in ("inputs", "outputs"):
                value = to_state(value, encrypt)
            if value or attribute in _ALWAYS:
                document[key] = value
        return {**document, **self.extra}

    @classmethod
    def from_json(cls, document: dict[str, Any], decrypt: Decrypt) -> ResourceState:
        """Reads one resource; keys it does not know go to `extra`."""
        known: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        for key, value in document.items():
            if key in ("inputs", "outputs"):
                known[key] = from_state(value, decrypt)
            elif key in _ATTRIBUTES:
                known[_ATTRIBUTES[key]] = value
            else:
                extra[key] = value
        return cls(**known, extra=extra)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


# JSON key to attribute; what has none is kept in `extra`.
_ATTRIBUTES: Final = {
    _camel(each.name): each.name for each in fields(ResourceState) if each.name != "extra"
}


@dataclass
class Operation:
    """A step that was begun; it stays in the checkpoint until its end is recorded."""

    resource: ResourceState
    type: str

    def to_json(self, encrypt: Encrypt) -> dict[str, Any]:
        """The operation as the checkpoint stores it."""
        return {"resource": self.resource.to_json(encrypt), "type": self.type}


@dataclass
class Checkpoint:
    """All that a stack's state file holds."""

    stack: str
    resources: list[ResourceState] = field(default_factory=list)
    pending: list[Operation] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)

    def to_json(self, encrypt: Encrypt, salt: str) -> dict[str, Any]:
        """The document of the state file."""
        latest: dict[str, Any] = {
            "manifest": {
                "time": now(),
                "magic": hashlib.sha256(ENGINE_VERSION.encode()).hexdigest(),
                "version": ENGINE_VERSION,
            },
            "secrets_providers": {"type": "passphrase", "state": {"salt": salt}},
        }
        if self.resources:
            latest["resources"] = [item.to_json(encrypt) for item in self.resources]
        if self.pending:
            latest["pending_operations"] = [item.to_json(encrypt) for item in self.pending]
        latest["metadata"] = self.metadata
        return {"version": _VERSION, "checkpoint": {"stack": self.stack, "latest": latest}}

    @classmethod
    def from_json(cls, document: dict[str, Any], decrypt: Decrypt) -> Checkpoint:
        """Reads the document of a state file."""
        check_version(document)
        checkpoint = document["checkpoint"]
        latest = checkpoint.get("latest") or {}
        if unknown := set(latest) & {"snippets", "extensions"}:
            raise EngineError(
                f"The checkpoint holds {', '.join(sorted(unknown))}",
                "This engine would lose them, so nothing was done",
                "Run this stack with the Pulumi CLI",
            )
        return cls(
            stack=checkpoint["stack"],
            resources=[ResourceState.from_json(r, decrypt) for r in latest.get("resources") or ()],
            pending=[
                Operation(ResourceState.from_json(op["resource"], decrypt), op["type"])
                for op in latest.get("pending_operations") or ()
            ],
            metadata=latest.get("metadata") or {},
        )


def check_version(document: dict[str, Any]) -> None:
    """Refuses a checkpoint that this engine cannot write back."""
    if document.get("version") != _VERSION:
        raise EngineError(
            f"The checkpoint has version {document.get('version')}, not {_VERSION}",
            "This engine would lose what newer versions store, so nothing was done",
            "Run this stack with the Pulumi CLI",
        )


def recorded_salt(document: dict[str, Any]) -> str | None:
    """The salt in a checkpoint's secrets provider, if it has one."""
    latest = document.get("checkpoint", {}).get("latest") or {}
    provider = latest.get("secrets_providers") or {}
    if not provider.get("type"):
        return None
    if provider["type"] != "passphrase":
        raise EngineError(
            f"The stack's secrets are kept by {provider['type']!r}",
            "They cannot be read here, so nothing was done",
            "Run this stack with the Pulumi CLI",
        )
    return str(provider["state"]["salt"])


def now() -> str:
    """The time as the CLI writes it, which leaves trailing zeros out."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}".rstrip("0").rstrip(".") + "Z"
