"""Kubernetes objects as pulumi-kubernetes keeps them: names, hidden fields, differences."""

from __future__ import annotations

import base64
import binascii
import copy
import secrets
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final

from fleetfoot.engine import _urn
from fleetfoot.engine._k8s_immutable import IMMUTABLE
from fleetfoot.engine._values import (
    Properties,
    Unknown,
    annotate_secrets,
    contains,
    equal,
    reveal,
    seal,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

Object = dict[str, Any]
Path = tuple[str | int, ...]

AUTONAMED: Final = "pulumi.com/autonamed"
FIELD_MANAGER: Final = "__fieldManager"
INITIAL_VERSION: Final = "__initialApiVersion"
INPUTS: Final = "__inputs"
_READ_ONLY: Final = (
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "generation",
    "managedFields",
    "resourceVersion",
    "uid",
)
# Property names of the SDK on the left, keys of a CRD's schema on the right.
_DASHED: Final = {
    name: name.replace("_", "-")
    for name in (
        "x_kubernetes_embedded_resource",
        "x_kubernetes_int_or_string",
        "x_kubernetes_list_map_keys",
        "x_kubernetes_list_type",
        "x_kubernetes_map_type",
        "x_kubernetes_preserve_unknown_fields",
        "x_kubernetes_validations",
    )
}
_UNDERSCORED: Final = {dashed: name for name, dashed in _DASHED.items()}
_SUFFIXES: Final = {
    **{suffix: Decimal(1000) ** n for n, suffix in enumerate("kMGTPE", 1)},
    **{f"{suffix}i": Decimal(1024) ** n for n, suffix in enumerate("KMGTPE", 1)},
    "m": Decimal("0.001"),
    "u": Decimal("0.000001"),
    "n": Decimal("0.000000001"),
    "": Decimal(1),
}


def to_object(properties: Properties) -> Object:
    """The plain object of a property map."""
    plain = reveal(properties)
    renamed: Object = _rename(plain, _DASHED)
    return renamed


def _rename(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {names.get(key, key): _rename(item, names) for key, item in value.items()}
    return [_rename(item, names) for item in value] if isinstance(value, list) else value


def metadata(obj: Object) -> Object:
    """The object's metadata; empty when it is unknown."""
    found = obj.get("metadata")
    return found if isinstance(found, dict) else {}


def name_of(obj: Object) -> str:
    """The object's name, "" when it has none or an unknown one."""
    name = metadata(obj).get("name")
    return name if isinstance(name, str) else ""


def namespace_of(obj: Object) -> str:
    """The object's namespace, or ""."""
    namespace = metadata(obj).get("namespace")
    return namespace if isinstance(namespace, str) else ""


def object_id(obj: Object) -> str:
    """`namespace/name`, or the name alone."""
    namespace = namespace_of(obj)
    return f"{namespace}/{name_of(obj)}" if namespace else name_of(obj)


def annotation(obj: Object, key: str) -> str:
    """An annotation's value, or ""."""
    found = metadata(obj).get("annotations")
    value = found.get(key, "") if isinstance(found, dict) else ""
    return value if isinstance(value, str) else ""


def normalise(obj: Object) -> Object:
    """The object without what only the server sets, and Secrets in their stored form."""
    result = copy.deepcopy(obj)
    for key in _READ_ONLY:
        metadata(result).pop(key, None)
    if result.get("kind") == "CustomResourceDefinition":
        result.pop("status", None)
    if is_secret(result) and not contains(result, Unknown):
        data = dict(result.get("data") or {})
        for key, text in (result.pop("stringData", None) or {}).items():
            data[key] = base64.b64encode(str(text).encode()).decode()
        if data:
            result["data"] = {key: _base64(value) for key, value in data.items()}
    return result


def is_secret(obj: Object) -> bool:
    """Whether it is a core Secret."""
    return obj.get("kind") == "Secret" and obj.get("apiVersion") == "v1"


def _base64(value: Any) -> Any:
    try:
        return base64.b64encode(base64.b64decode(value, validate=True)).decode()
    except (binascii.Error, TypeError, ValueError):
        return value


def give_name(obj: Object, old: Object, urn: str) -> None:
    """Names an object that has no name: as before, or the resource's name and eight digits."""
    meta = obj.setdefault("metadata", {})
    if not isinstance(meta, dict) or meta.get("name") or meta.get("generateName"):
        return
    if annotation(old, AUTONAMED) == "true":
        meta["name"] = name_of(old)
    elif old:
        return
    else:
        meta["name"] = f"{_urn.name(urn)}-{secrets.token_hex(4)}"
    annotations = meta.setdefault("annotations", {})
    if isinstance(annotations, dict):
        annotations[AUTONAMED] = "true"


def new_field_manager() -> str:
    """The field manager of one object."""
    return f"pulumi-kubernetes-{secrets.token_hex(4)}"


def to_outputs(inputs: Properties, live: Object, version: str, manager: str) -> Properties:
    """The outputs of a resource: the live object, and the provider's hidden fields."""
    outputs: Properties = _rename(copy.deepcopy(live), _UNDERSCORED)
    kept: Properties = _rename(copy.deepcopy(reveal(inputs)), _UNDERSCORED)
    for target in (outputs, kept):
        mark_secrets(target, inputs)
    return {**outputs, INPUTS: kept, INITIAL_VERSION: version, FIELD_MANAGER: manager}


def mark_secrets(target: Properties, inputs: Properties) -> None:
    """Marks a Secret's data, and what was secret in the inputs."""
    if target.get("kind") == "Secret":
        for key in ("data", "stringData"):
            if key in target:
                target[key] = seal(target[key])
    else:
        annotate_secrets(target, inputs)


def from_outputs(outputs: Properties) -> tuple[Object, Object]:
    """The inputs and the live object in a resource's outputs."""
    plain = to_object(outputs)
    inputs = plain.pop(INPUTS, {})
    return inputs, {key: value for key, value in plain.items() if not key.startswith("__")}


def prune(live: Any, shape: Any) -> Any:
    """What the live object has of that which the inputs named."""
    if isinstance(live, dict) and isinstance(shape, dict):
        return {key: prune(value, shape[key]) for key, value in live.items() if key in shape}
    if isinstance(live, list) and isinstance(shape, list):
        if not live or not shape:
            return []
        if type(live[0]) is not type(shape[0]):
            return live
        return [prune(one, other) for one, other in zip(live, shape, strict=False)]
    return live


def compare(old_outputs: Properties, new_inputs: Properties) -> list[tuple[str, bool]]:
    """The paths that change, and whether the change needs another object.

    What is compared is what the server made of the old inputs with the new ones.
    """
    old_inputs, live = from_outputs(old_outputs)
    new = normalise(to_object(new_inputs))
    old = prune(live, normalise(old_inputs))
    for side in (old, new):
        meta = side.setdefault("metadata", {})
        if isinstance(meta, dict):
            namespace = meta.pop("namespace", None) or "default"
            if namespace_of(live):
                meta["namespace"] = namespace
    if name_of(new):
        old["metadata"]["name"] = name_of(live)
    old.setdefault("apiVersion", new.get("apiVersion"))
    old.setdefault("kind", new.get("kind"))
    group, _, version = str(new.get("apiVersion", "")).rpartition("/")
    forced = IMMUTABLE.get((group, version, str(new.get("kind"))), ())
    forced = ("metadata.name", "metadata.namespace", *forced)
    found = []
    for path, value in _changes((), old, new, live):
        found.append((_text(path), any(_forces(path, value, each) for each in forced)))
    return found


_MISSING: Final = object()


def _changes(path: Path, old: Any, new: Any, live: Any) -> Iterator[tuple[Path, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        live = live if isinstance(live, dict) else {}
        for key in [*new, *(key for key in old if key not in new)]:
            yield from _changes(
                (*path, key),
                old.get(key, _MISSING),
                new.get(key, _MISSING),
                live.get(key, _MISSING),
            )
    elif isinstance(old, list) and isinstance(new, list):
        live = live if isinstance(live, list) else []
        for index in range(max(len(old), len(new))):
            yield from _changes((*path, index), *(_at(items, index) for items in (old, new, live)))
    elif not _same(path, old, new, live):
        yield path, None if new is _MISSING else new


def _at(items: list[Any], index: int) -> Any:
    return items[index] if index < len(items) else _MISSING


def _same(path: Path, old: Any, new: Any, live: Any) -> bool:
    if old is new or (old is not _MISSING and new is not _MISSING and equal(old, new)):
        return True
    if old is _MISSING and live is _MISSING and _empty(new):
        # The server leaves out what is empty anyway.
        return True
    if isinstance(old, Unknown) or isinstance(new, Unknown):
        return False
    return _quantities(path) and _quantity(old) is not None and _quantity(old) == _quantity(new)


def _empty(value: Any) -> bool:
    return not value and not isinstance(value, Unknown)


def _quantities(path: Path) -> bool:
    return bool({"limits", "requests", "hard", "capacity", "overhead", "sizeLimit"} & {*path})


def _quantity(value: Any) -> Decimal | None:
    """The number that a quantity such as `100m` or `1Gi` means."""
    text = str(value)
    digits = text.rstrip("kKMGTPEimun")
    try:
        return Decimal(digits) * _SUFFIXES[text[len(digits) :]]
    except (InvalidOperation, KeyError):
        return None


def _forces(path: Path, value: Any, forced: str) -> bool:
    """Whether the change at path touches a property that cannot change in place."""
    parts = forced.replace("[*]", ".*").split(".")
    for part, own in zip(parts, path, strict=False):
        if part not in ("*", own):
            return False
    return _has(value, parts[len(path) :])


def _has(value: Any, parts: list[str]) -> bool:
    if not parts:
        return True
    if isinstance(value, dict):
        return parts[0] in value and _has(value[parts[0]], parts[1:])
    if isinstance(value, list) and parts[0] == "*":
        return any(_has(item, parts[1:]) for item in value)
    return False


def _text(path: Path) -> str:
    """A path as the engine writes it."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif set(part) & set('."[]'):
            quoted = part.replace('"', '\\"')
            text += f'["{quoted}"]'
        else:
            text += f".{part}" if text else part
    return text
