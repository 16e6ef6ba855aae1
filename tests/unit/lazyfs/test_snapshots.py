"""Snapshots, over the gRPC service that containerd calls."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from fleetfoot.lazyfs.artifact import Artifact, Descriptor, LazyLayer
from fleetfoot.lazyfs.distribution import MANIFEST
from fleetfoot.lazyfs.node import api
from fleetfoot.lazyfs.node.api import Empty, message
from fleetfoot.lazyfs.node.devices import Devices
from fleetfoot.lazyfs.node.images import Images
from fleetfoot.lazyfs.node.registries import TRUSTED
from fleetfoot.lazyfs.node.service import Service
from fleetfoot.lazyfs.node.snapshots import SnapshotError, Snapshots
from fleetfoot.lazyfs.node.store import Folder
from fleetfoot.lazyfs.table import Table
from tests.unit.lazyfs.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Client:
    """containerd, as far as snapshots go."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def __call__(self, method: str, **fields: Any) -> Any:
        request, response, many = api.METHODS[method]
        answer = message(response) if response else Empty
        make = self._channel.unary_stream if many else self._channel.unary_unary
        call = make(
            f"/{api.SERVICE}/{method}",
            request_serializer=message(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        got = call(message(request)(**fields), timeout=10)
        return list(got) if many else got

    def refused(self, method: str, **fields: Any) -> grpc.StatusCode:
        with pytest.raises(grpc.RpcError) as told:
            self(method, **fields)
        code: grpc.StatusCode = told.value.code()
        return code

    def commit(self, name: str, parent: str = "") -> None:
        self("Prepare", key=f"{name}-active", parent=parent)
        self("Commit", name=name, key=f"{name}-active", parent=parent)


def service(root: Path, *, volatile: bool = False) -> Service:
    devices = Devices(root, root / "none", dead_timeout=1, log=print)
    snapshots = Snapshots(root, volatile=volatile)
    images, calls = Images(root, root, lambda _: None, print), ThreadPoolExecutor(2)
    return Service(root, snapshots, images, devices, print, calls=calls)


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[socket.socket]:
    """Open a socket, as systemd does it before the snapshotter is started."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket"))
        listening.listen()
        yield listening


@contextlib.contextmanager
def snapshotter(root: Path, listening: socket.socket) -> Iterator[None]:
    """Run the snapshotter behind a socket that is open already: its third file."""
    start = f'exec 3<&{listening.fileno()}; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'
    argv = ["bash", "-c", start, "sh", sys.executable, "-m", "fleetfoot.lazyfs.node"]
    argv += [f"--root={root}", f"--run={root / 'run'}", f"--certs={root}"]
    with subprocess.Popen(argv, pass_fds=[listening.fileno()]) as node:
        yield
        node.terminate()
        assert node.wait(10) == 0


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with (
        opened(tmp_path) as listening,
        snapshotter(tmp_path, listening),
        grpc.insecure_channel(f"unix:{tmp_path / 'socket'}") as channel,
    ):
        yield Client(channel)


def test_calls_wait_until_it_is_started(tmp_path: Path) -> None:
    with (
        opened(tmp_path) as listening,
        ThreadPoolExecutor(1) as others,
        grpc.insecure_channel(f"unix:{tmp_path / 'socket'}") as channel,
    ):
        listed = others.submit(Client(channel), "List")
        with snapshotter(tmp_path, listening):
            assert listed.result() == []
        with snapshotter(tmp_path, listening):  # the next one finds its calls, too
            Client(channel).commit("one")


def test_a_lowest_snapshot_is_a_folder(client: Client) -> None:
    (mount,) = client("Prepare", key="a").mounts
    assert (mount.type, list(mount.options)) == ("bind", ["rw", "rbind"])
    assert Path(mount.source).is_dir()
    assert client("Mounts", key="a").mounts == [mount]


def test_snapshots_stand_on_each_other(client: Client) -> None:
    client.commit("one")
    client.commit("two", "one")
    (mount,) = client("Prepare", key="rw", parent="two").mounts
    assert mount.type == "overlay"
    options = dict(option.split("=") for option in mount.options)
    upper, work = Path(options["upperdir"]), Path(options["workdir"])
    assert work == upper.parent / "work"
    assert work.is_dir()
    (view,) = client("View", key="ro", parent="two").mounts
    assert list(view.options) == [f"lowerdir={options['lowerdir']}"]
    two, one = options["lowerdir"].split(":")
    (single,) = client("View", key="ro1", parent="one").mounts
    assert (single.type, single.source) == ("bind", one)
    assert list(single.options) == ["ro", "rbind"]
    assert len({str(upper), one, two}) == 3


def test_roots_are_open_to_everybody_whatever_the_umask(client: Client) -> None:
    before = os.umask(0o077)
    try:
        (mount,) = client("Prepare", key="a").mounts
    finally:
        os.umask(before)
    assert Path(mount.source).stat().st_mode & 0o7777 == 0o755


def test_what_may_be_lost_is_not_synced(tmp_path: Path) -> None:
    made = service(tmp_path, volatile=True)
    made.Prepare(message("PrepareSnapshotRequest")(key="a"))
    made.Commit(message("CommitSnapshotRequest")(key="a", name="b"))
    answer = made.Prepare(message("PrepareSnapshotRequest")(key="c", parent="b"))
    assert "volatile" in answer.mounts[0].options


def test_what_is_known_of_them(client: Client) -> None:
    client("Prepare", key="a", labels={"x": "1"})
    info = client("Stat", key="a").info
    assert (info.name, info.parent, info.kind) == ("a", "", api.ACTIVE)
    assert dict(info.labels) == {"x": "1"}
    assert info.created_at.seconds > 0
    client("Commit", name="b", key="a", labels={"y": "2"})
    info = client("Stat", key="b").info
    assert (info.kind, dict(info.labels)) == (api.COMMITTED, {"y": "2"})
    for filters in ([], ['labels."x"==1']):  # containerd looks at what comes in any case
        listed = client("List", filters=filters)
        assert [each.name for page in listed for each in page.info] == ["b"]


def test_labels_are_changed_one_by_one_or_all(client: Client) -> None:
    client("Prepare", key="a", labels={"x": "1", "y": "2"})
    one = message("Info")(name="a", labels={"x": "3"})
    mask = {"paths": ["labels.x", "labels.y"]}
    assert dict(client("Update", info=one, update_mask=mask).info.labels) == {"x": "3"}
    every = message("Info")(name="a", labels={"z": "4"})
    assert dict(client("Update", info=every).info.labels) == {"z": "4"}
    wrong = {"paths": ["parent"]}
    assert client.refused("Update", info=every, update_mask=wrong) == (
        grpc.StatusCode.INVALID_ARGUMENT
    )


def test_what_others_stand_on_stays(client: Client, tmp_path: Path) -> None:
    client.commit("one")
    client("Prepare", key="rw", parent="one")
    assert client.refused("Remove", key="one") == grpc.StatusCode.FAILED_PRECONDITION
    client("Remove", key="rw")
    client("Remove", key="one")
    assert list((tmp_path / "snapshots").iterdir()) == []


@pytest.mark.parametrize("method", ["Stat", "Mounts", "Remove", "Usage"])
def test_what_is_not_there_is_said_to_be(client: Client, method: str) -> None:
    assert client.refused(method, key="none") == grpc.StatusCode.NOT_FOUND


def test_what_cannot_be_is_refused(client: Client) -> None:
    client("Prepare", key="a")
    codes = grpc.StatusCode
    assert client.refused("Prepare", key="a") == codes.ALREADY_EXISTS
    assert client.refused("Prepare", key="b", parent="a") == codes.INVALID_ARGUMENT
    assert client.refused("Prepare", key="b", parent="none") == codes.NOT_FOUND
    client("Commit", name="c", key="a")
    assert client.refused("Commit", name="d", key="c") == codes.FAILED_PRECONDITION


def test_a_layer_may_learn_what_it_stands_on_when_it_is_committed(client: Client) -> None:
    client.commit("one")
    client.commit("other")
    later = {"containerd.io/snapshot/parent-chain-id": "one"}
    (mount,) = client("Prepare", key="a", labels=later).mounts
    # Of overlayfs' kind, for what the layer removes is below it.
    assert (mount.type, len(mount.options)) == ("overlay", 1)
    content = Path(mount.options[0].removeprefix("upperdir="))
    assert content.is_dir()
    codes = grpc.StatusCode
    assert client.refused("Commit", name="two", key="a", parent="none") == codes.NOT_FOUND
    client("Commit", name="two", key="a", parent="one")
    assert client("Stat", key="two").info.parent == "one"
    assert client.refused("Remove", key="one") == codes.FAILED_PRECONDITION
    (mount,) = client("Prepare", key="rw", parent="two").mounts
    lower = next(option for option in mount.options if option.startswith("lowerdir="))
    assert lower.removeprefix("lowerdir=").split(":")[0] == str(content)
    assert client.refused("Commit", name="x", key="rw", parent="other") == codes.INVALID_ARGUMENT


def test_containerd_has_nothing_to_unpack_of_a_lazy_layer(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, volatile=False)
    made = snapshots.add("a", "", api.ACTIVE, {}, layer="0" * 64)
    (mount,) = snapshots.mounts(made)
    assert (mount.source, mount.options) == (str(snapshots.folder(made)), ("ro", "rbind"))
    snapshots.commit("lazy", "a", {})
    (mount,) = snapshots.mounts(snapshots.add("rw", "lazy", api.ACTIVE, {}))
    assert f"lowerdir={snapshots.folder(made)}" in mount.options


def test_usage_is_what_was_written(client: Client) -> None:
    (mount,) = client("Prepare", key="a").mounts
    (Path(mount.source) / "file").write_bytes(bytes(100_000))
    usage = client("Usage", key="a")
    assert 100_000 <= usage.size < 120_000
    assert usage.inodes == 2


def test_snapshots_outlive_the_process_and_halves_go(client: Client, tmp_path: Path) -> None:
    client.commit("one")
    (kept,) = (tmp_path / "snapshots").iterdir()
    (tmp_path / "snapshots" / "half" / "fs").mkdir(parents=True)  # killed before it was kept
    (broken := tmp_path / "snapshots" / "broken").mkdir()
    (broken / "snapshot.json").write_text("")
    after = service(tmp_path)
    assert after.Stat(message("StatSnapshotRequest")(key="one")).info.kind == api.COMMITTED
    after.Cleanup(None)
    assert list((tmp_path / "snapshots").iterdir()) == [kept]


def test_a_layer_that_is_not_mounted_starts_no_container(tmp_path: Path) -> None:
    made = service(tmp_path)
    made._snapshots.add("lazy", "", api.COMMITTED, {}, layer="0" * 64)
    with pytest.raises(SnapshotError, match="is not mounted") as told:
        made.Prepare(message("PrepareSnapshotRequest")(key="rw", parent="lazy"))
    assert told.value.code == "UNAVAILABLE"


def labels(reference: str, manifest: str, layer: str) -> dict[str, str]:
    """Return what containerd says of a layer that it would unpack."""
    prefix = "containerd.io/snapshot"
    return {
        f"{prefix}.ref": "sha256:chain",
        f"{prefix}/cri.image-ref": reference,
        f"{prefix}/cri.manifest-digest": manifest,
        f"{prefix}/cri.layer-digest": layer,
    }


@pytest.mark.parametrize("trusted", [True, False])
def test_only_registries_that_are_believed_are_asked_for_lazy_forms(
    tmp_path: Path, *, trusted: bool
) -> None:
    layer = f"sha256:{'1' * 64}"
    described = {"mediaType": "x", "digest": layer, "size": 1}
    manifest = json.dumps({"layers": [described]}).encode()
    subject = Descriptor.of(MANIFEST, manifest)
    table = Table.of(io.BytesIO(b"sector image"))
    artifact = Artifact(subject, (LazyLayer.of(layer, table),), "1")
    with Registry(tmp_path) as registry:
        registry.manifests[subject.digest] = (manifest, MANIFEST)
        registry.manifests[artifact.descriptor.digest] = (artifact.dump(), MANIFEST)
        registry.add(table.dump())
        (certs := tmp_path / registry.host).mkdir()
        hosts = f'[host."{registry.url}"]\nca = "{registry.authority}"\n'
        (certs / "hosts.toml").write_text(hosts)
        if trusted:
            (certs / TRUSTED).touch()
        request = message("PrepareSnapshotRequest")(
            key="a", labels=labels(f"{registry.host}/image:v1", subject.digest, layer)
        )
        # There is no server of sectors here: it is unpacked as ever, whatever the registry has.
        assert service(tmp_path).Prepare(request).mounts[0].type == "bind"
        assert bool(registry.seen) == trusted
    kept = list(Folder.all(tmp_path))
    assert [folder.table() for folder in kept] == ([table] if trusted else [])
    assert len(list((tmp_path / "snapshots").glob("*/snapshot.json"))) == 1


def test_an_image_whose_registry_is_away_is_unpacked_as_ever(
    client: Client, tmp_path: Path
) -> None:
    (certs := tmp_path / "localhost:1").mkdir()
    (certs / TRUSTED).touch()
    said = labels("localhost:1/image:tag", f"sha256:{'0' * 64}", f"sha256:{'1' * 64}")
    assert client("Prepare", key="a", labels=said).mounts[0].type == "bind"


def patience_ends_in(entered: threading.Event) -> Callable[[Future[Any], float], Any]:
    """Return what waits for no time, but until something has begun."""

    def result(_future: Future[Any], _timeout: float) -> Any:
        assert entered.wait(30)
        raise TimeoutError

    return result


class Stuck(Devices):
    """Devices whose mounts wait: those of a registry that has just gone away."""

    def __init__(self) -> None:
        super().__init__(Path("none"), Path("none"), dead_timeout=1, log=print)
        self.entered, self.go = threading.Event(), threading.Event()

    def mount(self, folder: Folder, target: Path) -> None:
        self.entered.set()
        assert self.go.wait(30)


def test_a_layer_that_cannot_be_mounted_soon_is_unpacked_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices, snapshots = Stuck(), Snapshots(tmp_path, volatile=False)
    images = Images(tmp_path, tmp_path, lambda _: None, print)
    folder = Folder.of(tmp_path, "0" * 64)
    manifest, layer = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry" / TRUSTED).touch()
    monkeypatch.setattr(Images, "_decide", lambda *_: {layer: folder})
    with ThreadPoolExecutor(2) as calls:
        made = Service(tmp_path, snapshots, images, devices, print, calls=calls)
        request = message("PrepareSnapshotRequest")(
            key="a", labels=labels("registry/image:v1", manifest, layer)
        )
        monkeypatch.setattr(Future, "result", patience_ends_in(devices.entered))
        assert list(made.Prepare(request).mounts[0].options) == ["rw", "rbind"]
        assert images.layer("registry/image:v1", manifest, layer) is None
        assert [each.layer for each in snapshots.all()] == [""]
        devices.go.set()  # what came too late leaves nothing behind
        made._mounts_of_layers.shutdown()
        assert not list(snapshots.orphans())
