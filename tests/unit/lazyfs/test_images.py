"""Images of a node: what a pull makes ready before containerd asks for its layers."""

from __future__ import annotations

import io
import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fleetfoot.lazyfs import artifact as artifact_module
from fleetfoot.lazyfs.artifact import Artifact, Descriptor, LazyLayer
from fleetfoot.lazyfs.distribution import MANIFEST, Repository
from fleetfoot.lazyfs.node import mounts
from fleetfoot.lazyfs.node.images import Images
from fleetfoot.lazyfs.node.registries import TRUSTED
from fleetfoot.lazyfs.node.store import Cache
from fleetfoot.lazyfs.table import Table, hex_digest
from tests.unit.lazyfs.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fleetfoot.lazyfs.node.store import Folder

CONTENT = b"sector image" * 20_000
PACKED = io.BytesIO()
TABLE = Table.of(io.BytesIO(CONTENT), PACKED)
LAYER = f"sha256:{'1' * 64}"
MANIFEST_BODY = json.dumps(
    {"layers": [{"mediaType": "x", "digest": LAYER, "size": len(CONTENT)}]}
).encode()
SUBJECT = Descriptor.of(MANIFEST, MANIFEST_BODY)


@contextmanager
def registry(root: Path, *, has_image: bool = True) -> Iterator[Registry]:
    """Serve an image of one small layer with its lazy form; the node believes it."""
    artifact = Artifact(SUBJECT, (LazyLayer.of(LAYER, TABLE),), "1")
    with Registry(root) as served:
        served.manifests[SUBJECT.digest] = (MANIFEST_BODY, MANIFEST)
        served.manifests[artifact.descriptor.digest] = (artifact.dump(), MANIFEST)
        served.add(TABLE.dump())
        if has_image:
            served.add(PACKED.getvalue())
        (certs := root / served.host).mkdir()
        hosts = f'[host."{served.url}"]\nca = "{served.authority}"\n'
        (certs / "hosts.toml").write_text(hosts)
        (certs / TRUSTED).touch()
        yield served


def pulled(root: Path, served: Registry, told: list[object]) -> Folder:
    """Return the layer's folder after a pull by a snapshotter that has just been started."""
    node = Images(root, root, lambda _: None, told.append)
    found = node.layer(f"{served.host}/image:v1", SUBJECT.digest, LAYER)
    assert found
    return found


def image_requests(served: Registry) -> int:
    digest = hex_digest(TABLE.image)
    return sum(digest in str(request) for request in served.seen)


def test_a_small_layer_comes_whole(tmp_path: Path) -> None:
    with registry(tmp_path) as served:
        folder = pulled(tmp_path, served, [])
        assert folder.is_complete, "it is mounted from its file"
        assert folder.data.read_bytes() == CONTENT
        pulled(tmp_path, served, [])
        assert image_requests(served) == 1
    # In the next boot it is not believed, but verified, not fetched.
    folder.unmark()
    cache = Cache(folder, folder.table())
    assert cache.count == folder.table().block_count
    assert all(cache.confirm(block) for block in range(cache.count))


@pytest.mark.parametrize(
    ("bound", "length"),
    [("LARGEST_WHOLE", TABLE.packed_length), ("_LARGEST_UNPACKED", TABLE.length)],
)
def test_a_large_layer_comes_as_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, length: int
) -> None:
    monkeypatch.setattr(artifact_module, bound, length - 1)
    with registry(tmp_path) as served:
        folder = pulled(tmp_path, served, [])
        assert not folder.data.exists()
        assert not image_requests(served)


def test_what_the_server_has_begun_with_is_left_to_it(tmp_path: Path) -> None:
    with registry(tmp_path) as served:
        folder = pulled(tmp_path, served, [])
        folder.unmark()
        folder.data.write_bytes(b"")
        assert not pulled(tmp_path, served, []).is_complete
        assert image_requests(served) == 1


def test_a_small_layer_that_does_not_come_whole_is_read_by_pieces(tmp_path: Path) -> None:
    told: list[object] = []
    with registry(tmp_path, has_image=False) as served:
        folder = pulled(tmp_path, served, told)
        assert not folder.is_complete
        assert not folder.data.exists()
    assert any("is not fetched whole" in str(line) for line in told)


@pytest.mark.parametrize("length", [TABLE.packed_length - 1, TABLE.packed_length + 1, 9])
def test_a_layer_of_another_length_than_its_table_says_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    told: list[object] = []
    monkeypatch.setattr(
        Repository,
        "blob",
        lambda asked, digest, largest, ask=Repository.blob: (
            (PACKED.getvalue() + b"x")[:length]
            if digest == hex_digest(TABLE.image)
            else ask(asked, digest, largest)
        ),
    )
    with registry(tmp_path) as served:
        assert not pulled(tmp_path, served, told).is_complete
    assert any("not what its table says" in str(line) for line in told)


def test_a_small_layer_for_which_a_disk_has_no_room_is_read_by_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cache, "write", lambda *_: False)
    with registry(tmp_path) as served:
        assert not pulled(tmp_path, served, []).is_complete


def test_what_is_mounted_where_names_have_blanks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (rows := tmp_path / "mountinfo").write_text(
        "21 1 0:5 / /proc rw,nosuid shared:2 master:1 - proc proc rw\n"
        "22 1 0:6 / /a\\040b\\134c rw - erofs /dev/dm-1 ro,relatime\n"
    )
    monkeypatch.setattr(mounts, "_MOUNTS", rows)
    assert mounts.mounted() == {Path("/proc"): "proc", Path("/a b\\c"): "/dev/dm-1"}
