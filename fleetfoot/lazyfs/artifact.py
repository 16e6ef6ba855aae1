"""The artifact that makes an image lazy: a manifest of its own, with the image's as its subject.

For each layer of the image it has a sector image and its table, both named by the layer they belong
to. The image itself stays as it is.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fleetfoot.errors import FleetfootError
from fleetfoot.lazyfs.distribution import MANIFEST
from fleetfoot.lazyfs.table import LARGEST, Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "CONVERTER",
    "KIND",
    "LARGEST_TRACE",
    "LARGEST_WHOLE",
    "Artifact",
    "Descriptor",
    "LazyLayer",
    "layers_of",
]

KIND = "application/vnd.fleetfoot.lazy.v1"
"""Artifact type: how it is found among an image's referrers."""
_IMAGE_KIND = "application/vnd.fleetfoot.lazy.image.v2.erofs+zstd"
_TABLE_KIND = "application/vnd.fleetfoot.lazy.table.v2"
_TRACE_KIND = "application/vnd.fleetfoot.lazy.trace.v1+json"
_PACK_KIND = "application/vnd.fleetfoot.lazy.pack.v1"
_LAYER = "io.fleetfoot.lazy.layer"
CONVERTER = "io.fleetfoot.lazy.converter"
"""Annotation that says what made a lazy form."""
# What the specification puts in the place of a configuration that is not needed.
_EMPTY_KIND, EMPTY = "application/vnd.oci.empty.v1+json", b"{}"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
LARGEST_TRACE = 1 << 20
"""Bytes of the largest trace that a node takes."""
LARGEST_WHOLE = 1 << 20
"""Bytes of the largest packed sector image that a node fetches whole before it is mounted: to read
it by pieces would take a start longer."""
_LARGEST_UNPACKED = 4 * LARGEST_WHOLE
_MOST_LAYERS = 512  # overlayfs has no room for more


@dataclass(frozen=True)
class Descriptor:
    """What is needed to fetch something and to know that it is right.

    Attributes:
        kind: Media type.
        digest: `sha256:<hex>`.
        size: Bytes.
    """

    kind: str
    digest: str
    size: int

    @classmethod
    def of(cls, kind: str, data: bytes) -> Descriptor:
        """Describe some bytes."""
        return cls(kind, "sha256:" + hashlib.sha256(data).hexdigest(), len(data))

    @classmethod
    def of_pack(cls, digest: str, size: int) -> Descriptor:
        """Describe a pack, which may be too large to be in memory."""
        return cls(_PACK_KIND, digest, size)

    @classmethod
    def parse(cls, plain: Any) -> Descriptor:
        """Read a descriptor.

        Raises:
            FleetfootError: It is none.
        """
        kind, digest, size = (
            (plain.get("mediaType"), plain.get("digest"), plain.get("size"))
            if isinstance(plain, dict)
            else (None, None, None)
        )
        if (
            not isinstance(kind, str)
            or not isinstance(digest, str)
            or not _DIGEST.fullmatch(digest)
            or not isinstance(size, int)
            or size < 0
        ):
            raise _refused(f"{plain!r} describes nothing")
        return cls(kind, digest, size)

    def plain(self) -> dict[str, Any]:
        """Return it as it stands in a manifest."""
        return {"mediaType": self.kind, "digest": self.digest, "size": self.size}


@dataclass(frozen=True)
class LazyLayer:
    """The lazy form of one layer.

    Attributes:
        layer: Digest of the layer, as the image's manifest names it.
        image: Its sector image, packed.
        table: The table of that.
    """

    layer: str
    image: Descriptor
    table: Descriptor

    @property
    def name(self) -> str:
        """Hex of the table's SHA-256: by it nodes know the sector image."""
        return self.table.digest.removeprefix("sha256:")

    def comes_whole(self, table: Table) -> bool:
        """Whether nodes fetch it whole before it is mounted, and not by pieces."""
        return self.image.size <= LARGEST_WHOLE and table.length <= _LARGEST_UNPACKED

    @classmethod
    def of(cls, layer: str, table: Table) -> LazyLayer:
        """Describe a layer by its table."""
        image = Descriptor(_IMAGE_KIND, f"sha256:{table.image.hex()}", table.packed_length)
        return cls(layer, image, Descriptor.of(_TABLE_KIND, table.dump()))

    def table_of(self, data: bytes) -> Table:
        """Read this layer's table.

        Raises:
            FleetfootError: It is not the one that is described, or of another sector image.
        """
        if Descriptor.of(_TABLE_KIND, data) != self.table:
            raise _refused(f"the table of {self.layer} is not the one that the artifact names")
        table = Table.parse(data)
        if LazyLayer.of(self.layer, table) != self:
            raise _refused(f"the table of {self.layer} is that of another sector image")
        return table


@dataclass(frozen=True)
class Artifact:
    """What makes one image lazy.

    Attributes:
        subject: The image's manifest.
        layers: Lazy forms, in the order of the image's layers, each layer once.
        converter: What made them: programs with versions and settings.
        trace: Which blocks a start reads, in which order, for nodes to fetch ahead (`trace`).
        packs: By layer, those blocks of its sector image once more, packed, one after the other in
            that order: so they come with a few requests.
    """

    subject: Descriptor
    layers: tuple[LazyLayer, ...]
    converter: str
    trace: Descriptor | None = None
    packs: Mapping[str, Descriptor] = field(default_factory=dict)

    def dump(self) -> bytes:
        """Return the manifest, the same for the same content."""
        pieces = []
        for each in self.layers:
            for described in (each.image, each.table):
                pieces.append({**described.plain(), "annotations": {_LAYER: each.layer}})
        if self.trace:
            pieces.append(self.trace.plain())
        for layer, pack in sorted(self.packs.items()):
            pieces.append({**pack.plain(), "annotations": {_LAYER: layer}})
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": KIND,
            "config": Descriptor.of(_EMPTY_KIND, EMPTY).plain(),
            "layers": pieces,
            "subject": self.subject.plain(),
            "annotations": {CONVERTER: self.converter},
        }
        return json.dumps(manifest, separators=(",", ":"), sort_keys=True).encode()

    @property
    def descriptor(self) -> Descriptor:
        """The artifact's own."""
        return Descriptor.of(MANIFEST, self.dump())

    @property
    def listed(self) -> dict[str, Any]:
        """How it stands in a list of what belongs to its subject."""
        notes = {CONVERTER: self.converter}
        return {**self.descriptor.plain(), "artifactType": KIND, "annotations": notes}

    @classmethod
    def parse(cls, data: bytes) -> Artifact:
        """Read an artifact.

        Raises:
            FleetfootError: It is none, or says what cannot be.
        """
        try:
            manifest = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise _refused("it is no JSON") from error
        if not isinstance(manifest, dict) or manifest.get("artifactType") != KIND:
            raise _refused(f"it is not of the type {KIND}")
        pieces = manifest.get("layers")
        if not isinstance(pieces, list):
            raise _refused("its layers are not pairs of a sector image and a table")
        pieces, trace, packs = _start(pieces)
        if len(pieces) > 2 * _MOST_LAYERS:
            raise _refused(f"its layers are not pairs of what one has, of {_MOST_LAYERS} at most")
        layers = tuple(
            _pair(image, table) for image, table in zip(pieces[::2], pieces[1::2], strict=True)
        )
        if len({each.layer for each in layers}) != len(layers):
            raise _refused("it names a layer twice")
        made = str(_notes(manifest).get(CONVERTER, ""))
        return cls(Descriptor.parse(manifest.get("subject")), layers, made, trace, packs)

    def traced(self, trace: bytes, packs: Mapping[str, Descriptor] | None = None) -> Artifact:
        """Return this with another trace.

        Args:
            trace: The trace (`trace.dump`).
            packs: For layers that it names, what it names (`Descriptor.of_pack`).
        """
        return replace(self, trace=Descriptor.of(_TRACE_KIND, trace), packs=packs or {})

    def untraced(self) -> Artifact:
        """Return this without a trace."""
        return replace(self, trace=None, packs={})

    def covers(self, layers: Sequence[str]) -> bool:
        """Whether every one of these layers has a lazy form."""
        return set(layers) <= {each.layer for each in self.layers}


def _notes(piece: Any) -> dict[str, Any]:
    notes = piece.get("annotations") if isinstance(piece, dict) else None
    return notes if isinstance(notes, dict) else {}


def _start(pieces: list[Any]) -> tuple[list[Any], Descriptor | None, dict[str, Descriptor]]:
    """Take the trace and the packs off, which come last."""
    packs = dict[str, Descriptor]()
    while pieces and isinstance(pieces[-1], dict) and pieces[-1].get("mediaType") == _PACK_KIND:
        *pieces, last = pieces
        packs[str(_notes(last).get(_LAYER))] = Descriptor.parse(last)
    if not len(pieces) % 2:
        if packs:
            raise _refused("it has packs of blocks, and no trace")
        return pieces, None, {}
    *pieces, last = pieces
    trace = Descriptor.parse(last)
    if trace.kind != _TRACE_KIND or trace.size > LARGEST_TRACE:
        raise _refused(f"it ends with a {trace.kind} of {trace.size} bytes")
    return pieces, trace, packs


def _pair(image: Any, table: Any) -> LazyLayer:
    named = [_notes(piece).get(_LAYER) for piece in (image, table)]
    if named[0] != named[1] or not _DIGEST.fullmatch(str(named[0])):
        raise _refused(f"a sector image and a table belong to {named[0]!r} and {named[1]!r}")
    pair = LazyLayer(str(named[0]), Descriptor.parse(image), Descriptor.parse(table))
    if (pair.image.kind, pair.table.kind) != (_IMAGE_KIND, _TABLE_KIND):
        raise _refused(f"{pair.layer} has a {pair.image.kind} and a {pair.table.kind}")
    if not 0 < pair.image.size <= LARGEST:
        raise _refused(f"the sector image of {pair.layer} would have {pair.image.size} bytes")
    # What it unpacks to is known by the table alone, and is no less.
    if not Table.size_for(pair.image.size) <= pair.table.size <= Table.size_for(LARGEST):
        raise _refused(f"the table of {pair.layer} has {pair.table.size} bytes")
    return pair


def layers_of(manifest: bytes) -> list[Descriptor]:
    """Return the layers of an image's manifest, the lowest first.

    Raises:
        FleetfootError: It is no manifest of an image.
    """
    try:
        plain = json.loads(manifest)
    except (ValueError, RecursionError):
        plain = None
    if not isinstance(plain, dict) or not isinstance(plain.get("layers"), list):
        raise FleetfootError("this is no manifest of an image", "nothing can be converted")
    return [Descriptor.parse(layer) for layer in plain["layers"]]


def _refused(why: str) -> FleetfootError:
    return FleetfootError(
        f"the lazy form of an image is not usable: {why}",
        "the image is pulled as ever",
        "convert it again (`fleetfoot lazy convert`)",
    )
