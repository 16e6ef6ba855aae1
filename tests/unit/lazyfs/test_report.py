"""What is said of layers, by how they are read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from fleetfoot.lazyfs.node.api import COMMITTED
from fleetfoot.lazyfs.node.report import status
from fleetfoot.lazyfs.node.snapshots import Snapshots
from fleetfoot.lazyfs.node.store import Folder

if TYPE_CHECKING:
    from pathlib import Path

NAME = "ab" * 32
IMAGE = "registry.example/image:1"


@pytest.mark.parametrize(("way", "present"), [("nbd", 2048), ("both", 2048), ("file", 8192)])
def test_what_is_read_from_its_file_is_all_there(tmp_path: Path, way: str, present: int) -> None:
    snapshots = Snapshots(tmp_path, volatile=True)
    labels = {"containerd.io/snapshot/cri.image-ref": IMAGE}
    snapshots.add("one", "", COMMITTED, labels, layer=NAME)
    folder = Folder.of(tmp_path, NAME)
    folder.path.mkdir(parents=True)
    folder.data.write_bytes(bytes(8192))
    devices = cast("Any", SimpleNamespace(way=lambda *_: way))
    said = {"layers": {NAME: {"blocks": 4, "present": 1, "bytes": 8192}}}
    # A server that was started since the layer turned to its file knows nothing of it.
    stats = {} if way == "file" else said
    (image,) = status(tmp_path, stats, snapshots, devices)["images"]
    assert (image["reference"], image["bytes"], image["present"]) == (IMAGE, 8192, present)
