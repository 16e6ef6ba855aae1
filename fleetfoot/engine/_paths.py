"""Property paths, as ignoreChanges and replaceOnChanges use them: `a.b[0]["c d"]`, `*`."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Final

from fleetfoot.engine._values import Properties, Secret, Value

if TYPE_CHECKING:
    from collections.abc import Iterable

_PART: Final = re.compile(r"""\.?([^.\[\]"]+)|\[(\d+|\*)\]|\["((?:[^"\\]|\\.)*)"\]""")
_ABSENT: Final = object()


def parse(path: str) -> list[str | int]:
    """Splits a path into keys and indices."""
    parts: list[str | int] = []
    for match in _PART.finditer(path):
        name, index, quoted = match.groups()
        if name is not None:
            parts.append(name)
        elif index is not None:
            parts.append(int(index) if index != "*" else "*")
        else:
            parts.append(quoted.replace('\\"', '"'))
    return parts


def keep(new: Properties, old: Properties, ignored: Iterable[str]) -> Properties:
    """The new properties with the ignored paths as they were.

    A path that only one of both has is added or removed with it when its container exists in both.
    """
    result: Properties = new
    for path in ignored:
        result = copy.deepcopy(result) if result is new else result
        _reset(result, old, parse(path))
    return result


def _reset(new: Value, old: Value, path: list[str | int]) -> None:
    new, old = _open(new), _open(old)
    if not path:
        return
    head, rest = path[0], path[1:]
    if head == "*":
        for key in _keys(new) | _keys(old):
            _reset(new, old, [key, *rest])
        return
    before = _get(old, head)
    if rest:
        after = _get(new, head)
        if after is not _ABSENT and before is not _ABSENT:
            _reset(after, before, rest)
    elif isinstance(new, dict) and isinstance(head, str):
        if before is _ABSENT:
            new.pop(head, None)
        else:
            new[head] = before
    elif isinstance(new, list) and head in range(len(new)) and before is not _ABSENT:
        new[int(head)] = before


def _open(value: Value) -> Value:
    return _open(value.value) if isinstance(value, Secret) else value


def _keys(value: Value) -> set[str | int]:
    if isinstance(value, dict):
        return set(value)
    return set(range(len(value))) if isinstance(value, list) else set()


def _get(value: Value, key: str | int) -> Value:
    if isinstance(value, dict) and key in value:
        return value[key]
    if isinstance(value, list) and isinstance(key, int) and key < len(value):
        return value[key]
    return _ABSENT


def touch(paths: Iterable[str], changed: Iterable[str]) -> list[str]:
    """The changed properties that are, or lie below, one of the paths."""
    parsed = [parse(path) for path in paths]
    return [name for name in changed if any(_below(parse(name), path) for path in parsed)]


def _below(name: list[str | int], path: list[str | int]) -> bool:
    return len(path) <= len(name) and all(
        part in ("*", own) for part, own in zip(path, name, strict=False)
    )
