"""URNs: urn:pulumi:<stack>::<project>::<parent type$type>::<name>."""

from __future__ import annotations

from typing import Final

ROOT_TYPE: Final = "pulumi:pulumi:Stack"
PROVIDER_PREFIX: Final = "pulumi:providers:"


def make(stack: str, project: str, parent: str, kind: str, resource: str) -> str:
    """The URN of a resource; the stack's own type is no part of its children's."""
    chain = qualified_type(parent) if parent else ""
    prefix = f"{chain}$" if chain and chain != ROOT_TYPE else ""
    return f"urn:pulumi:{stack}::{project}::{prefix}{kind}::{resource}"


def qualified_type(urn: str) -> str:
    """The chain of types."""
    return urn.split("::", 3)[2]


def kind(urn: str) -> str:
    """The resource's own type."""
    return qualified_type(urn).rsplit("$", 1)[-1]


def name(urn: str) -> str:
    """The resource's name, which may itself hold `::`."""
    return urn.split("::", 3)[3]


def package(kind: str) -> str:
    """The package of a type token."""
    return kind.split(":", 1)[0]


def is_provider(kind: str) -> bool:
    """Whether the type is a provider's."""
    return kind.startswith(PROVIDER_PREFIX)


def is_default_provider(urn: str) -> bool:
    """Whether the engine itself made this provider."""
    return is_provider(kind(urn)) and name(urn).split("_")[0] == "default"


def provider_urn(reference: str) -> str:
    """The URN in a provider reference `urn::id`."""
    return reference.rsplit("::", 1)[0]


def provider_id(reference: str) -> str:
    """The id in a provider reference `urn::id`."""
    return reference.rsplit("::", 1)[1]
