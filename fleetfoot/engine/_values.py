"""Property values: in memory, on the wire and in the checkpoint.

In memory a value is None, bool, int, float, str, list or dict, or one of the two classes here.
Resource references stay dicts that carry the protocol's signature key.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from google.protobuf import struct_pb2

from fleetfoot.engine._errors import UnsupportedError

Value = Any
Properties = dict[str, Value]

SIG: Final = "4dabf18193072939515e22adb298388d"
SEALED_SIG: Final = "1b47061264138c4ac30d75fd1eb44270"
ASSET_SIG: Final = "c44067f5952c0a294b673a41bacd8c17"
ARCHIVE_SIG: Final = "0def7320c3a5731c473e5ecbe6d01bc7"
RESOURCE_SIG: Final = "5cf8f73096256a8f31e491e813e4eb8e"
OUTPUT_SIG: Final = "d0e6a833031e9bbcd3f4e8bde6ca49a4"
UNKNOWN: Final = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"

# Whole numbers beyond this lose digits as doubles, so they stay floats.
_EXACT: Final = 2.0**53


class Unknown:
    """A value that exists only after the update; previews are full of them."""

    def __repr__(self) -> str:
        return "unknown"


UNKNOWN_VALUE: Final = Unknown()


class Secret:
    """A value that is encrypted in state and hidden in output.

    `sealed` keeps the ciphertext of the plaintext it was made from, so that an unchanged secret
    stays byte-identical in the checkpoint.
    """

    __slots__ = ("sealed", "value")

    def __init__(self, value: Value, sealed: tuple[str, str] | None = None) -> None:
        self.value = value
        self.sealed = sealed

    def __repr__(self) -> str:
        return "[secret]"


def seal(value: Value) -> Secret:
    """Makes a value secret once."""
    return value if isinstance(value, Secret) else Secret(value)


def reveal(value: Value) -> Value:
    """The value with every secret inside it unwrapped."""
    if isinstance(value, Secret):
        return reveal(value.value)
    if isinstance(value, list):
        return [reveal(item) for item in value]
    if isinstance(value, dict):
        return {key: reveal(item) for key, item in value.items()}
    return value


def unseal(value: Value) -> None:
    """Forgets all ciphertexts."""
    if isinstance(value, Secret):
        value.sealed = None
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            unseal(item)


def contains(value: Value, kind: type) -> bool:
    """Whether a Secret or Unknown stands anywhere in the value."""
    if isinstance(value, kind):
        return True
    if isinstance(value, Secret):
        return contains(value.value, kind)
    if isinstance(value, list):
        return any(contains(item, kind) for item in value)
    if isinstance(value, dict):
        return any(contains(item, kind) for item in value.values())
    return False


def equal(left: Value, right: Value) -> bool:
    """Deep equality in which True is not 1 and a secret differs from its plaintext."""
    if isinstance(left, Secret) or isinstance(right, Secret):
        both = isinstance(left, Secret) and isinstance(right, Secret)
        return both and equal(left.value, right.value)
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


def annotate_secrets(outputs: Properties, inputs: Properties) -> None:
    """Marks what comes back from a provider that cannot mark it itself."""
    for key, given in inputs.items():
        if key not in outputs:
            continue
        answer = outputs[key]
        if isinstance(answer, dict) and isinstance(given, dict):
            annotate_secrets(answer, given)
        elif contains(given, Secret):
            outputs[key] = seal(answer)


# --- the wire ---------------------------------------------------------------------------------


def from_struct(struct: struct_pb2.Struct) -> Properties:
    """Reads a protocol message."""
    return {key: _from_wire(value) for key, value in struct.fields.items()}


def _from_wire(value: struct_pb2.Value) -> Value:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return UNKNOWN_VALUE if value.string_value == UNKNOWN else value.string_value
    if kind == "number_value":
        return _number(value.number_value)
    if kind == "bool_value":
        return value.bool_value
    if kind == "list_value":
        return [_from_wire(item) for item in value.list_value.values]
    if kind == "struct_value":
        return _from_object(from_struct(value.struct_value))
    return None


def _number(number: float) -> int | float:
    return int(number) if number.is_integer() and abs(number) <= _EXACT else number


def _from_object(fields: Properties) -> Value:
    sig = fields.get(SIG)
    if sig == SEALED_SIG:
        return seal(fields.get("value"))
    if sig == OUTPUT_SIG:
        value = fields.get("value", UNKNOWN_VALUE)
        return seal(value) if fields.get("secret") else value
    if sig in (ASSET_SIG, ARCHIVE_SIG):
        raise UnsupportedError("An asset or archive as a resource property")
    return fields


def to_struct(
    properties: Properties, *, secrets: bool, unknowns: bool = True, resources: bool = False
) -> struct_pb2.Struct:
    """Writes a protocol message.

    Args:
        properties: What to send.
        secrets: Whether the receiver understands secrets; else they go in clear.
        unknowns: Whether it understands unknowns; else they are left out.
        resources: Whether it understands resource references; else it gets ids.
    """
    struct = struct_pb2.Struct()
    _fill(struct, properties, _Receiver(secrets, unknowns, resources))
    return struct


class _Receiver(NamedTuple):
    secrets: bool
    unknowns: bool
    resources: bool


def _fill(struct: struct_pb2.Struct, properties: Properties, receiver: _Receiver) -> None:
    struct.SetInParent()
    for key, value in properties.items():
        if receiver.unknowns or not isinstance(value, Unknown):
            _to_wire(value, struct.fields[key], receiver)


def _to_wire(value: Value, wire: struct_pb2.Value, receiver: _Receiver) -> None:
    if isinstance(value, Secret) and receiver.secrets:
        _fill(wire.struct_value, {SIG: SEALED_SIG, "value": value.value}, receiver)
    elif isinstance(value, Secret):
        _to_wire(value.value, wire, receiver)
    elif isinstance(value, list):
        wire.list_value.SetInParent()
        for item in value:
            _to_wire(item, wire.list_value.values.add(), receiver)
    elif not isinstance(value, dict):
        _scalar_to_wire(value, wire)
    elif value.get(SIG) == RESOURCE_SIG and not receiver.resources:
        _to_wire(value.get("id", value.get("urn")), wire, receiver)
    else:
        _fill(wire.struct_value, value, receiver)


def _scalar_to_wire(value: Value, wire: struct_pb2.Value) -> None:
    if isinstance(value, Unknown):
        wire.string_value = UNKNOWN
    elif value is None:
        wire.null_value = struct_pb2.NULL_VALUE
    elif isinstance(value, bool):
        wire.bool_value = value
    elif isinstance(value, str):
        wire.string_value = value
    else:
        wire.number_value = value


# --- the checkpoint ---------------------------------------------------------------------------

Encrypt = Callable[[str], str]
Decrypt = Callable[[str], str]


def to_state(value: Value, encrypt: Encrypt) -> Any:
    """The value as the checkpoint stores it: keys sorted, secrets encrypted."""
    if isinstance(value, Secret):
        plain = json.dumps(
            to_state(value.value, lambda text: text), ensure_ascii=False, separators=(",", ":")
        )
        if value.sealed is None or value.sealed[0] != plain:
            value.sealed = (plain, encrypt(plain))
        return {SIG: SEALED_SIG, "ciphertext": value.sealed[1]}
    if isinstance(value, Unknown):
        return UNKNOWN
    if isinstance(value, list):
        return [to_state(item, encrypt) for item in value]
    if isinstance(value, dict):
        return {key: to_state(value[key], encrypt) for key in sorted(value)}
    if isinstance(value, float):
        return _number(value)
    return value


def from_state(value: Any, decrypt: Decrypt) -> Value:
    """Reads a value as the checkpoint stores it."""
    if isinstance(value, list):
        return [from_state(item, decrypt) for item in value]
    if not isinstance(value, dict):
        return UNKNOWN_VALUE if value == UNKNOWN else value
    if value.get(SIG) != SEALED_SIG:
        return {key: from_state(item, decrypt) for key, item in value.items()}
    if "plaintext" in value:
        return Secret(from_state(json.loads(value["plaintext"]), lambda text: text))
    plain = decrypt(value["ciphertext"])
    inner = from_state(json.loads(plain), lambda text: text)
    return Secret(inner, (plain, value["ciphertext"]))
