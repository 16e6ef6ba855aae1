"""Lazy forms are found and attached, with the referrers API and without it."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from fleetfoot.errors import FleetfootError
from fleetfoot.lazyfs import trace
from fleetfoot.lazyfs.artifact import KIND, Artifact, Descriptor, LazyLayer
from fleetfoot.lazyfs.commands import lazy
from fleetfoot.lazyfs.convert import (
    Converted,
    attach,
    attach_traced,
    forget_trace,
    wrong_packs,
)
from fleetfoot.lazyfs.distribution import INDEX, MANIFEST, AbsentError, Access, Repository
from fleetfoot.lazyfs.stores import Layout, Remote, Store, artifact_of
from fleetfoot.lazyfs.table import BLOCK, Table
from tests.unit.lazyfs.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIG = b"{}"
IMAGE = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": Descriptor.of("application/vnd.oci.image.config.v1+json", CONFIG).plain(),
        "layers": [],
    }
).encode()
SUBJECT = Descriptor.of(MANIFEST, IMAGE)


def holding_image(folder: Path) -> Layout:
    """Return an OCI layout with the image, as `v1`."""
    (folder / "blobs/sha256").mkdir(parents=True)
    (folder / "oci-layout").write_text("{}")
    (folder / "blobs/sha256" / SUBJECT.digest[7:]).write_bytes(IMAGE)
    named = {"annotations": {"org.opencontainers.image.ref.name": "v1"}}
    index = {"schemaVersion": 2, "manifests": [{**SUBJECT.plain(), **named}]}
    (folder / "index.json").write_text(json.dumps(index))
    return Layout(folder)


@pytest.fixture(params=["conforming", "referrers", "tags", "layout"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "conforming":
        url = request.getfixturevalue("conforming")
        made = Repository(Access(url), f"{tmp_path.name.lower()}/image")
        made.put_blob(CONFIG, Descriptor.of("", CONFIG).digest)
        for name in ("v1", SUBJECT.digest):
            made.put_manifest(IMAGE, name)
        yield Remote(made)
        return
    if request.param == "layout":
        yield holding_image(tmp_path / "layout")
        return
    with Registry(tmp_path, referrers=request.param == "referrers") as registry:
        for name in ("v1", SUBJECT.digest):
            registry.manifests[name] = (IMAGE, MANIFEST)
        yield Remote(registry.repository())


def made(tmp_path: Path, content: bytes, converter: str = "1") -> tuple[Artifact, dict[str, Path]]:
    table = Table.of(io.BytesIO(content), packed := io.BytesIO())
    lazy = LazyLayer.of(f"sha256:{'0' * 64}", table)
    files = {lazy.image.digest: packed.getvalue(), lazy.table.digest: table.dump()}
    for digest, data in files.items():
        (tmp_path / digest[7:]).write_bytes(data)
    blobs = {digest: tmp_path / digest[7:] for digest in files}
    return Artifact(SUBJECT, (lazy,), converter), blobs


def test_a_lazy_form_is_found_beside_its_image(store: Store, tmp_path: Path) -> None:
    assert store.manifest("v1")[0] == IMAGE
    assert artifact_of(store, SUBJECT.digest) is None
    artifact, blobs = made(tmp_path, b"content")
    for _ in range(2):
        store.attach(artifact, blobs)
        assert artifact_of(store, SUBJECT.digest) == artifact
        assert len(store.referrers(SUBJECT.digest)) == 1
    assert store.manifest("v1")[0] == IMAGE
    table = artifact.layers[0].table_of(store.blob(artifact.layers[0].table.digest))
    with store.open(artifact.layers[0].image.digest) as stream:
        assert list(table.check(stream)) == []


def test_a_later_one_stands_in_its_place(store: Store, tmp_path: Path) -> None:
    for converter in ("1", "2"):
        artifact, blobs = made(tmp_path, converter.encode(), converter)
        store.attach(artifact, blobs)
    assert artifact_of(store, SUBJECT.digest) == artifact


def test_a_trace_is_kept_with_it_and_stays(store: Store, tmp_path: Path) -> None:
    artifact, blobs = made(tmp_path, b"content")
    converted = Converted(artifact, blobs, fresh=0)
    assert attach(store, converted)
    name = artifact.layers[0].table.digest[7:]
    for first in (13, 15):
        recorded = trace.dump({name: [first, 0]})
        assert attach_traced(store, artifact_of(store, SUBJECT.digest) or artifact, recorded)
        found = artifact_of(store, SUBJECT.digest)
        assert found is not None
        assert found.trace is not None
        runs = trace.parse(store.blob(found.trace.digest))[name]
        assert runs == [range(first, first + 1), range(1)]
        assert not attach_traced(store, found, recorded)
    assert not attach(store, converted)
    assert artifact_of(store, SUBJECT.digest) == found


def test_what_a_trace_names_is_kept_as_a_pack(store: Store, tmp_path: Path) -> None:
    content = b"".join(bytes([block]) * BLOCK for block in range(5)) + b"end"
    artifact, blobs = made(tmp_path, content)
    attach(store, Converted(artifact, blobs, fresh=0))
    (lazy_layer,) = artifact.layers
    attach_traced(store, artifact, trace.dump({lazy_layer.name: [5, 2, 3, 0, 99]}))
    found = artifact_of(store, SUBJECT.digest)
    assert found is not None
    pack = found.packs[lazy_layer.layer]
    runs = (range(5, 6), range(2, 4), range(1))
    table = lazy_layer.table_of(store.blob(lazy_layer.table.digest))
    packed = store.blob(lazy_layer.image.digest)
    assert len(packed) < BLOCK
    pieces = [packed[begin : begin + count] for begin, count in map(table.place_of, runs)]
    assert store.blob(pack.digest) == b"".join(pieces), "in the order of the trace"
    assert not list(wrong_packs(store, found))
    other = found.traced(trace.dump({lazy_layer.name: [5, 2, 3, 1]}), found.packs)
    other_trace = tmp_path / "other"
    other_trace.write_bytes(trace.dump({lazy_layer.name: [5, 2, 3, 1]}))
    assert other.trace is not None
    store.attach(other, {other.trace.digest: other_trace})
    assert ["other blocks" in line for line in wrong_packs(store, other)] == [True]


def test_a_pack_that_is_damaged_or_gone_is_told(tmp_path: Path) -> None:
    store = holding_image(tmp_path / "layout")
    artifact, blobs = made(tmp_path, b"content")
    attach(store, Converted(artifact, blobs, fresh=0))
    attach_traced(store, artifact, trace.dump({artifact.layers[0].name: [0]}))
    found = artifact_of(store, SUBJECT.digest)
    assert found is not None
    blob = tmp_path / "layout/blobs" / next(iter(found.packs.values())).digest.replace(":", "/")
    # Of a layer with a single block, the pack is the sector image.
    blob.write_bytes(b"CONTENT")
    assert len(told := list(wrong_packs(store, found))) == 1
    assert "cannot be compared" in told[0]
    blob.unlink()
    assert len(list(wrong_packs(store, found))) == 1


def test_a_trace_is_not_kept_with_blocks_that_are_damaged(tmp_path: Path) -> None:
    store = holding_image(tmp_path / "layout")
    artifact, blobs = made(tmp_path, b"content")
    attach(store, Converted(artifact, blobs, fresh=0))
    (lazy_layer,) = artifact.layers
    (tmp_path / "layout/blobs" / lazy_layer.image.digest.replace(":", "/")).write_bytes(b"CONTENT")
    with pytest.raises(FleetfootError, match="not what its table says"):
        attach_traced(store, artifact, trace.dump({lazy_layer.name: [0]}))
    assert artifact_of(store, SUBJECT.digest) == artifact


def test_a_trace_is_forgotten(store: Store, tmp_path: Path) -> None:
    artifact, blobs = made(tmp_path, b"content")
    attach(store, Converted(artifact, blobs, fresh=0))
    assert not forget_trace(store, artifact)
    attach_traced(store, artifact, trace.dump({artifact.layers[0].name: [13, 0]}))
    found = artifact_of(store, SUBJECT.digest)
    assert found is not None
    assert forget_trace(store, found)
    assert artifact_of(store, SUBJECT.digest) == artifact
    assert len(store.referrers(SUBJECT.digest)) == 1


def test_a_trace_that_cannot_be_forgotten_is_told(tmp_path: Path) -> None:
    with Registry(tmp_path, keeps=True) as registry:
        store = Remote(registry.repository())
        artifact, blobs = made(tmp_path, b"content")
        attach(store, Converted(artifact, blobs, fresh=0))
        for block in range(20):  # of two that are kept, the one with the larger digest is chosen
            traced = artifact.traced(trace.dump({artifact.layers[0].name: [block]}))
            if traced.descriptor.digest > artifact.descriptor.digest:
                break
        attach_traced(store, artifact, trace.dump({artifact.layers[0].name: [block]}))
        with pytest.raises(FleetfootError, match="does not remove"):
            forget_trace(store, traced)


def test_the_command_forgets_a_trace_once(tmp_path: Path) -> None:
    store, image = holding_image(tmp_path / "layout"), f"oci:{tmp_path / 'layout'}:v1"
    artifact, blobs = made(tmp_path, b"content")
    attach(store, Converted(artifact, blobs, fresh=0))
    attach_traced(store, artifact, trace.dump({artifact.layers[0].name: [1]}))
    for told in ("forgotten", "there is none"):
        done = CliRunner().invoke(lazy, ["trace", image, "--forget"])
        assert done.exit_code == 0, done.output
        assert told in done.output
    assert artifact_of(store, SUBJECT.digest) == artifact
    for options in ([], ["--forget", "--node", "worker-1"]):
        refused = CliRunner().invoke(lazy, ["trace", image, *options])
        assert refused.exit_code == 2
        assert "either --node or --forget" in " ".join(refused.output.split())


def test_an_earlier_one_that_cannot_be_removed_is_not_chosen(tmp_path: Path) -> None:
    with Registry(tmp_path, keeps=True) as registry:
        store = Remote(registry.repository())
        for converter in ("2", "1"):  # whatever the order in which they are listed
            artifact, blobs = made(tmp_path, converter.encode(), converter)
            store.attach(artifact, blobs)
        assert len(store.referrers(SUBJECT.digest)) == 2
        found = artifact_of(store, SUBJECT.digest)
        assert found is not None
        assert found.converter == "2"


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"manifests": 1}', b'{"manifests": [1]}'])
def test_a_list_that_is_none_is_told(tmp_path: Path, body: bytes) -> None:
    with Registry(tmp_path, referrers=False) as registry:
        registry.manifests[SUBJECT.digest.replace(":", "-")] = (body, INDEX)
        with pytest.raises(FleetfootError, match="no index"):
            artifact_of(Remote(registry.repository()), SUBJECT.digest)


def test_what_others_attached_stays(tmp_path: Path) -> None:
    with Registry(tmp_path, referrers=False) as registry:
        other: dict[str, Any] = {**SUBJECT.plain(), "artifactType": "application/signature"}
        tag = SUBJECT.digest.replace(":", "-")
        index = {"schemaVersion": 2, "manifests": [other]}
        registry.manifests[tag] = (json.dumps(index).encode(), INDEX)
        store = Remote(registry.repository())
        store.attach(*made(tmp_path, b"content"))
        listed = json.loads(registry.manifests[tag][0])["manifests"]
        assert [each["artifactType"] for each in listed] == ["application/signature", KIND]


def test_the_lazy_form_of_another_image_is_not_used(store: Store, tmp_path: Path) -> None:
    artifact, blobs = made(tmp_path, b"content")
    store.attach(artifact, blobs)

    class Wrong:
        manifest = staticmethod(store.manifest)

        def referrers(self, _digest: str) -> list[dict[str, Any]]:
            return [artifact.listed]

    with pytest.raises(FleetfootError, match="is attached to"):
        artifact_of(Wrong(), f"sha256:{'1' * 64}")  # type: ignore[arg-type]


def test_a_layout_tells_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(FleetfootError, match="no OCI layout"):
        Layout(tmp_path)
    (tmp_path / "oci-layout").write_text("{}")
    (tmp_path / "index.json").write_text('{"manifests": []}')
    layout = Layout(tmp_path)
    with pytest.raises(AbsentError, match="known: none"):
        layout.manifest("v1")
    with pytest.raises(AbsentError):
        layout.blob(f"sha256:{'0' * 64}")
    with pytest.raises(FleetfootError, match="no digest"):
        layout.blob("sha256:../../etc/passwd")
    (tmp_path / "blobs/sha256").mkdir(parents=True)
    (tmp_path / "blobs/sha256" / ("0" * 64)).write_text("other")
    with pytest.raises(FleetfootError, match="is damaged"):
        layout.blob(f"sha256:{'0' * 64}")
