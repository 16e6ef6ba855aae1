"""Conversion with the real programs: what is hard about layers comes through, and is compared."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from fleetfoot.errors import FleetfootError
from fleetfoot.lazyfs.building import converter
from fleetfoot.lazyfs.compare import differences
from fleetfoot.lazyfs.convert import Converted, convert, unpack
from fleetfoot.lazyfs.distribution import MANIFEST
from fleetfoot.lazyfs.stores import REF_NAME, Layout
from fleetfoot.lazyfs.table import Table
from fleetfoot.shell import run
from tests.unit.lazyfs.archives import archive

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

XATTR = "SCHILY.xattr."
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_DIR, _LINK, _HARD = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def _text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")


BASE = archive(
    ("./", {"type": _DIR, "mode": 0o755}),
    ("tmp", {"type": _DIR, "mode": 0o1777, "pax_headers": {"mtime": "1600000000.25"}}),
    ("etc", {"type": _DIR, "mode": 0o755}),
    ("etc/gone", {}),
    ("etc/kept", {}),
    ("opt", {"type": _DIR, "mode": 0o755}),
    ("opt/old", {"type": _DIR, "mode": 0o750, "uid": 7}),
    ("opt/old/file", {}),
    ("var/lib/old", {}),
    ("big", {"data": os.urandom(9 << 20)}),
    data=b"base",
)
HARD = archive(
    ("etc/.wh.gone", {}),
    ("opt/.wh.old", {}),
    ("var/lib/.wh..wh..opq", {}),
    ("var/lib/new", {}),
    ("etc/hard", {"mode": 0o640}),
    ("etc/same", {"type": _HARD, "linkname": "./etc/hard", "mode": 0o640}),
    ("abs", {"type": _LINK, "linkname": "/etc", "mode": 0o644}),
    ("abs/through", {}),
    ("dev/null", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3, "mode": 0o666}),
    ("dev/disk", {"type": tarfile.BLKTYPE, "devmajor": 259, "devminor": 70000, "mode": 0o660}),
    ("dev/pipe", {"type": tarfile.FIFOTYPE, "mode": 0o600}),
    (
        "bin/ping",
        {
            "mode": 0o4755,
            "uid": 100_000,
            "gid": 4_000_000_000,
            "pax_headers": {
                "mtime": "1700000000.123456789",
                f"{XATTR}security.capability": _text(b"\1\0\0\2\0\x20" + bytes(14)),
                f"{XATTR}user.raw": _text(bytes(range(256))),
            },
        },
    ),
    ("ü/" + "n" * 200 + "/" + "m" * 200, {}),
    ("twice", {"data": b"first"}),
    ("twice", {"data": b"second"}),
    ("empty", {"data": b""}),
    ("tmp/left-out/file", {}),
    ("../../up", {}),
    data=b"hard",
)


def sparse(folder: Path, size: int) -> bytes:
    """Return a layer with a file that is all holes but for six bytes, as pax archives pack it."""
    folder.mkdir()
    with (folder / "sparse").open("wb") as file:
        file.truncate(size)
        file.seek(size // 2)
        file.write(b"middle")
    argv = ["tar", "--sparse", "--format=pax", "-C", str(folder), "-c", "sparse"]
    return subprocess.run(argv, check=True, capture_output=True).stdout


def pack(data: bytes, how: str) -> bytes:
    if how == "gzip":
        return gzip.compress(data, mtime=0)
    if how == "zstd":
        argv = ["zstd", "--stdout", "--quiet"]
        return subprocess.run(argv, input=data, capture_output=True, check=True).stdout
    return data


def image(folder: Path, layers: Sequence[tuple[bytes, str]]) -> Layout:
    """Write an OCI layout with one image, `image`.

    Args:
        folder: Where.
        layers: Archives, and how each is packed: `gzip`, `zstd`, or nothing.
    """
    (blobs := folder / "blobs/sha256").mkdir(parents=True)

    def blob(kind: str, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    packed = [blob(f"{_LAYER}+{how}" if how else _LAYER, pack(data, how)) for data, how in layers]
    unpacked = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data, _ in layers]
    config = {"os": "linux", "rootfs": {"type": "layers", "diff_ids": unpacked}}
    kind = "application/vnd.oci.image.config.v1+json"
    plain = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": blob(kind, json.dumps(config).encode()),
        "layers": packed,
    }
    tagged = {**blob(MANIFEST, json.dumps(plain).encode()), "annotations": {REF_NAME: "image"}}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [tagged]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return Layout(folder)


def converted(layout: Layout, cache: Path) -> Converted:
    made = converter(print)
    return convert(layout, *layout.manifest("image"), converter=made, cache=cache, progress=print)


def compared(lazy: Converted, ordinary: Layout, work: Path) -> list[str]:
    work.mkdir()
    unpack(ordinary, ordinary.manifest("image")[0], work / "layout", "image", converter(print))
    files = []
    for number, layer in enumerate(lazy.artifact.layers):
        table = Table.parse(lazy.blobs[layer.table.digest].read_bytes())
        files.append(work / f"{number}.erofs")
        with lazy.blobs[layer.image.digest].open("rb") as packed, files[-1].open("wb") as plain:
            table.unpack(packed, plain)
    return list(differences(files, work / "layout", "image", work))


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(100 << 20, id="100MiB"),
        pytest.param(9 << 30, id="9GiB", marks=pytest.mark.long),
    ],
)
def test_nothing_of_an_image_is_lost(tmp_path: Path, size: int) -> None:
    large = sparse(tmp_path / "sparse", size)
    layout = image(tmp_path / "image", [(BASE, "gzip"), (HARD, "zstd"), (large, "")])
    assert compared(converted(layout, tmp_path / "cache"), layout, tmp_path / "work") == []


def test_whatever_differs_is_told(tmp_path: Path) -> None:
    entries = {"mode": 0o600, "pax_headers": {f"{XATTR}user.a": "1"}}
    other = {"mode": 0o640, "uid": 1, "data": b"other", "pax_headers": {f"{XATTR}user.a": "2"}}
    one = image(tmp_path / "one", [(archive(("a", entries), ("b", {}), data=b"12345"), "")])
    two = image(tmp_path / "two", [(archive(("a", other), ("c", {}), data=b"12345"), "")])
    told = compared(converted(one, tmp_path / "cache"), two, tmp_path / "work")
    assert "a: mode is '0o600', not '0o640'" in told
    assert "a: owner is '0:0', not '1:0'" in told
    assert "a: the content differs" in told
    assert any(line.startswith("a: xattrs is") for line in told)
    assert {"b: only in the lazy tree", "c: only in the ordinary tree"} <= set(told)


def test_the_same_image_gives_the_same_lazy_form(tmp_path: Path) -> None:
    layout = image(tmp_path / "image", [(BASE, "gzip"), (HARD, "")])
    made = [converted(layout, tmp_path / f"cache-{number}") for number in range(2)]
    assert made[0].artifact == made[1].artifact
    assert [each.fresh for each in made] == [2, 2]


def test_layers_that_images_share_are_converted_once(tmp_path: Path) -> None:
    one = image(tmp_path / "one", [(BASE, "gzip"), (archive(("a", {})), "")])
    two = image(tmp_path / "two", [(BASE, "gzip"), (archive(("b", {})), "")])
    assert converted(one, tmp_path / "cache").fresh == 2
    assert converted(two, tmp_path / "cache").fresh == 1
    assert converted(two, tmp_path / "cache").fresh == 0


def test_folders_that_are_left_out_are_those_below_each_image(tmp_path: Path) -> None:
    # The same layer over two others: its folder is the one below, so it is two sector images.
    above = archive(("d/file", {}))
    for number, mode in enumerate((0o1777, 0o700)):
        below = archive(("d", {"type": _DIR, "mode": mode, "mtime": 5}))
        layout = image(tmp_path / f"image-{number}", [(below, ""), (above, "")])
        lazy = converted(layout, tmp_path / "cache")
        assert lazy.fresh == 2
        assert compared(lazy, layout, tmp_path / f"work-{number}") == []


def test_a_layer_that_is_damaged_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    layout = image(tmp_path / "image", [(BASE, "gzip")])
    layer = json.loads(layout.manifest("image")[0])["layers"][0]["digest"]
    blob = tmp_path / "image/blobs/sha256" / layer[7:]
    blob.write_bytes(blob.read_bytes()[:-1])
    with pytest.raises(FleetfootError, match="nothing was converted"):
        converted(layout, tmp_path / "cache")
    assert [p for p in (tmp_path / "cache/layers").iterdir() if p.suffix != ".lock"] == []


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    layout = image(tmp_path / "image", [(BASE, "gzip")])
    (small := tmp_path / "small").mkdir()
    run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(small)])
    try:
        with pytest.raises(FleetfootError, match="is full"):
            converted(layout, small)
        assert [p for p in (small / "layers").iterdir() if p.suffix != ".lock"] == []
    finally:
        run(["umount", str(small)])
