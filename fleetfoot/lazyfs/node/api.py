"""containerd's snapshots service, version 1, as gRPC messages.

Declared here instead of generated, for the runtime of protobuf is what a node's distribution has:
numbers and names are those of api/services/snapshots/v1/snapshots.proto and types/mount.proto.
"""

from __future__ import annotations

import functools
from typing import Any

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    empty_pb2,
    field_mask_pb2,
    message_factory,
    timestamp_pb2,
)

__all__ = ["ACTIVE", "COMMITTED", "METHODS", "SERVICE", "VIEW", "Empty", "message"]

_PACKAGE = "containerd.services.snapshots.v1"
SERVICE = f"{_PACKAGE}.Snapshots"
"""Name of the service."""
VIEW, ACTIVE, COMMITTED = 1, 2, 3
"""Kinds of snapshots."""
Empty = empty_pb2.Empty

_LABELS, _TIME, _MASK = "labels", ".google.protobuf.Timestamp", ".google.protobuf.FieldMask"
_MOUNT, _INFO = ".containerd.types.Mount", f".{_PACKAGE}.Info"
_TAKES_KEY = {"snapshotter": "string", "key": "string"}
_MAKES = {**_TAKES_KEY, "parent": "string", _LABELS: "map"}
# Messages by name: fields in the order of their numbers, which are consecutive.
_MESSAGES: dict[str, dict[str, str]] = {
    "PrepareSnapshotRequest": _MAKES,
    "PrepareSnapshotResponse": {"mounts": f"*{_MOUNT}"},
    "ViewSnapshotRequest": _MAKES,
    "ViewSnapshotResponse": {"mounts": f"*{_MOUNT}"},
    "MountsRequest": _TAKES_KEY,
    "MountsResponse": {"mounts": f"*{_MOUNT}"},
    "RemoveSnapshotRequest": _TAKES_KEY,
    "CommitSnapshotRequest": {
        "snapshotter": "string",
        "name": "string",
        "key": "string",
        _LABELS: "map",
        "parent": "string",
    },
    "StatSnapshotRequest": _TAKES_KEY,
    "Info": {
        "name": "string",
        "parent": "string",
        "kind": "int32",  # an enumeration; on the wire they are the same
        "created_at": _TIME,
        "updated_at": _TIME,
        _LABELS: "map",
    },
    "StatSnapshotResponse": {"info": _INFO},
    "UpdateSnapshotRequest": {"snapshotter": "string", "info": _INFO, "update_mask": _MASK},
    "UpdateSnapshotResponse": {"info": _INFO},
    "ListSnapshotsRequest": {"snapshotter": "string", "filters": "*string"},
    "ListSnapshotsResponse": {"info": f"*{_INFO}"},
    "UsageRequest": _TAKES_KEY,
    "UsageResponse": {"size": "int64", "inodes": "int64"},
    "CleanupRequest": {"snapshotter": "string"},
}
_MOUNT_FIELDS = {"type": "string", "source": "string", "target": "string", "options": "*string"}
#: Methods by name: request, response (None for an empty one), whether responses are many.
METHODS: dict[str, tuple[str, str | None, bool]] = {
    "Prepare": ("PrepareSnapshotRequest", "PrepareSnapshotResponse", False),
    "View": ("ViewSnapshotRequest", "ViewSnapshotResponse", False),
    "Mounts": ("MountsRequest", "MountsResponse", False),
    "Commit": ("CommitSnapshotRequest", None, False),
    "Remove": ("RemoveSnapshotRequest", None, False),
    "Stat": ("StatSnapshotRequest", "StatSnapshotResponse", False),
    "Update": ("UpdateSnapshotRequest", "UpdateSnapshotResponse", False),
    "List": ("ListSnapshotsRequest", "ListSnapshotsResponse", True),
    "Usage": ("UsageRequest", "UsageResponse", False),
    "Cleanup": ("CleanupRequest", None, False),
}

_Field = descriptor_pb2.FieldDescriptorProto
_PLAIN = {
    "string": _Field.TYPE_STRING,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
}


@functools.cache  # before protobuf 4, each factory has classes of its own
def message(name: str) -> Any:
    """Return the class of a message of the service, or `Mount`."""
    full = "containerd.types.Mount" if name == "Mount" else f"{_PACKAGE}.{name}"
    described = _POOL.FindMessageTypeByName(full)
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(described)
    before_4: Any = message_factory.MessageFactory(_POOL)
    return before_4.GetPrototype(described)


def _declare(file: descriptor_pb2.FileDescriptorProto, name: str, fields: dict[str, str]) -> None:
    declared = file.message_type.add(name=name)
    for number, (field, kind_) in enumerate(fields.items(), 1):
        kind, repeated = kind_.removeprefix("*"), kind_.startswith("*")
        if kind == "map":
            entry, repeated = declared.nested_type.add(name="LabelsEntry"), True
            entry.options.map_entry = True
            once, text = _Field.LABEL_OPTIONAL, _Field.TYPE_STRING
            entry.field.add(name="key", number=1, label=once, type=text)
            entry.field.add(name="value", number=2, label=once, type=text)
            kind = f".{file.package}.{name}.LabelsEntry"
        label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
        added = declared.field.add(name=field, number=number, label=label)
        if kind in _PLAIN:
            added.type = _PLAIN[kind]
        else:
            added.type, added.type_name = _Field.TYPE_MESSAGE, kind


def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    known = [module.DESCRIPTOR for module in (empty_pb2, field_mask_pb2, timestamp_pb2)]
    for each in known:
        copy = descriptor_pb2.FileDescriptorProto()
        each.CopyToProto(copy)
        pool.Add(copy)
    mounts = descriptor_pb2.FileDescriptorProto(
        name="mount.proto", package="containerd.types", syntax="proto3"
    )
    _declare(mounts, "Mount", _MOUNT_FIELDS)
    pool.Add(mounts)
    file = descriptor_pb2.FileDescriptorProto(
        name="snapshots.proto",
        package=_PACKAGE,
        syntax="proto3",
        dependency=[mounts.name, *(each.name for each in known)],
    )
    for name, fields in _MESSAGES.items():
        _declare(file, name, fields)
    pool.Add(file)
    return pool


_POOL = _pool()
