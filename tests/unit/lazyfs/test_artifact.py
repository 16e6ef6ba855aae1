"""The artifact: the same bytes for the same content, and what nodes refuse."""

from __future__ import annotations

import io
import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from fleetfoot.errors import FleetfootError
from fleetfoot.lazyfs.artifact import (
    KIND,
    LARGEST_TRACE,
    Artifact,
    Descriptor,
    LazyLayer,
    layers_of,
)
from fleetfoot.lazyfs.distribution import MANIFEST
from fleetfoot.lazyfs.table import BLOCK, LARGEST, Table

if TYPE_CHECKING:
    from collections.abc import Callable


def table() -> Table:
    return Table.of(io.BytesIO(os.urandom(3 * BLOCK)))


def name(layer: int) -> str:
    return f"sha256:{bytes([layer]).hex() * 32}"


TABLES = {name(n): table() for n in (1, 2)}
FOUND = Artifact(
    Descriptor(MANIFEST, name(9), 500),
    tuple(LazyLayer.of(layer, made) for layer, made in TABLES.items()),
    "form 1",
)


def test_it_is_read_as_it_was_written() -> None:
    assert Artifact.parse(FOUND.dump()) == FOUND
    assert FOUND.dump() == FOUND.dump()
    assert FOUND.descriptor == Descriptor.of(MANIFEST, FOUND.dump())


def test_a_trace_comes_along() -> None:
    traced = FOUND.traced(b"{}")
    assert Artifact.parse(traced.dump()) == traced
    assert traced.trace is not None
    assert Artifact.parse(FOUND.dump()).trace is None
    plain = json.loads(traced.dump())
    plain["layers"][-1]["size"] = LARGEST_TRACE + 1
    with pytest.raises(FleetfootError, match="it ends with"):
        Artifact.parse(json.dumps(plain).encode())


def test_packs_come_along_with_a_trace() -> None:
    pack = Descriptor.of_pack(name(7), 65536)
    traced = FOUND.traced(b"{}", {name(2): pack, name(1): pack})
    assert Artifact.parse(traced.dump()) == traced
    assert traced.untraced() == FOUND
    assert traced.traced(b"{}") == FOUND.traced(b"{}"), "they were another trace's"
    plain = json.loads(traced.dump())
    del plain["layers"][-3]
    with pytest.raises(FleetfootError, match="packs of blocks, and no trace"):
        Artifact.parse(json.dumps(plain).encode())


def test_it_says_which_layers_it_covers() -> None:
    assert FOUND.covers([name(1), name(2), name(1)])
    assert not FOUND.covers([name(1), name(3)])


def test_tables_are_those_that_are_named() -> None:
    for layer in FOUND.layers:
        assert layer.table_of(TABLES[layer.layer].dump()) == TABLES[layer.layer]
    first, second = FOUND.layers
    with pytest.raises(FleetfootError, match="not the one that the artifact names"):
        first.table_of(TABLES[second.layer].dump())
    with pytest.raises(FleetfootError, match="of another sector image"):
        LazyLayer(first.layer, first.image, second.table).table_of(TABLES[second.layer].dump())


def _second_layer_again(plain: dict[str, Any]) -> None:
    plain["layers"] += plain["layers"][:2]


def _other_owner(plain: dict[str, Any]) -> None:
    plain["layers"][1]["annotations"] = {"io.fleetfoot.lazy.layer": name(2)}


def _path(plain: dict[str, Any]) -> None:
    for piece in plain["layers"][:2]:
        piece["annotations"] = {"io.fleetfoot.lazy.layer": "sha256:../../../etc/passwd"}


def _set(piece: int, key: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(plain: dict[str, Any]) -> None:
        plain["layers"][piece][key] = value

    return change


HOSTILE: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda plain: plain.update(artifactType="other"), f"not of the type {KIND}"),
    (lambda plain: plain.update(layers={}), "not pairs"),
    (lambda plain: plain["layers"].pop(), "it ends with"),
    (lambda plain: plain.update(layers=plain["layers"] * 600), "not pairs"),
    (lambda plain: plain.update(subject=None), "describes nothing"),
    (_second_layer_again, "names a layer twice"),
    (_other_owner, "belong to"),
    (_path, "belong to"),
    (_set(0, "digest", "sha256:../../../../etc/passwd"), "describes nothing"),
    (_set(0, "digest", "md5:00"), "describes nothing"),
    (_set(0, "size", -1), "describes nothing"),
    (_set(0, "size", "1"), "describes nothing"),
    (_set(0, "size", 0), "would have 0 bytes"),
    (_set(0, "size", LARGEST + 1), f"would have {LARGEST + 1} bytes"),
    (_set(1, "size", 1 << 40), f"has {1 << 40} bytes"),
    (_set(0, "mediaType", "text/plain"), "has a text/plain"),
    (_set(0, "annotations", None), "belong to"),
    (_set(1, "annotations", ["x"]), "belong to"),
    (lambda plain: plain.update(layers=["x", "y"]), "belong to"),
]


@pytest.mark.parametrize(("change", "said"), HOSTILE)
def test_what_cannot_be_is_refused(change: Callable[[dict[str, Any]], object], said: str) -> None:
    plain = json.loads(FOUND.dump())
    change(plain)
    with pytest.raises(FleetfootError, match=said):
        Artifact.parse(json.dumps(plain).encode())


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"null", b"[" * 100_000])
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(FleetfootError, match="the image is pulled as ever"):
        Artifact.parse(data)


def test_layers_of_what_is_no_image() -> None:
    with pytest.raises(FleetfootError, match="no manifest of an image"):
        layers_of(b'{"manifests": []}')
