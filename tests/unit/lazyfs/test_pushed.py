"""What is pushed is made lazy: once, whatever else was pushed, and later where that failed."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from fleetfoot.errors import FleetfootError
from fleetfoot.lazyfs.artifact import Descriptor
from fleetfoot.lazyfs.building import converter
from fleetfoot.lazyfs.distribution import INDEX, Access, Repository, repositories
from fleetfoot.lazyfs.pushed import Queue, Wanted, make_lazy, server, trim, wanted_of
from fleetfoot.lazyfs.stores import Layout, Remote, artifact_of
from tests.unit.lazyfs.archives import archive
from tests.unit.lazyfs.test_conversion import image

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

DIGEST = f"sha256:{'a' * 64}"


def event(action: str = "push", kind: str = INDEX, **target: Any) -> dict[str, Any]:
    named = {"mediaType": kind, "digest": DIGEST, "repository": "image", "tag": "1"}
    return {"id": "1", "action": action, "target": {**named, **target}, "request": {}}


def events(*each: dict[str, Any]) -> bytes:
    return json.dumps({"events": each}).encode()


def test_manifests_and_indexes_that_were_pushed_are_wanted() -> None:
    told = events(
        event(),
        event(kind="application/vnd.docker.distribution.manifest.v2+json", repository="other"),
        event(action="pull"),
        event(kind="application/octet-stream"),
        {"id": "2", "action": "delete", "target": {"digest": DIGEST, "repository": "image"}},
    )
    assert wanted_of(told) == [Wanted("image", DIGEST), Wanted("other", DIGEST)]


@pytest.mark.parametrize("told", [b"", b"[]", b"{}", b'{"events": [1]}', b'{"events": 1}'])
def test_what_is_no_notification_is_refused(told: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        wanted_of(told)


def test_what_failed_comes_later_each_time_and_the_rest_at_once() -> None:
    now = [0.0]
    queue, bad, good = Queue(lambda: now[0]), Wanted("bad", DIGEST), Wanted("good", DIGEST)
    queue.add(bad)
    queue.add(bad)
    assert queue.next() == bad
    pauses = []
    for _ in range(10):
        pauses.append(queue.again(bad))
        queue.add(good)
        assert queue.next() == good
        now[0] += pauses[-1]
        assert queue.next() == bad
    assert pauses[:3] == [30, 60, 120]
    assert pauses[-1] == 3600
    queue.done(bad)
    assert queue.again(bad) == 30


def test_who_waits_is_woken() -> None:
    queue, came = Queue(), list[Wanted]()
    waiting = threading.Thread(target=lambda: came.append(queue.next()), daemon=True)
    waiting.start()
    queue.add(Wanted("image", DIGEST))
    waiting.join(10)
    assert came == [Wanted("image", DIGEST)]


@pytest.fixture
def address() -> Iterator[tuple[str, Queue]]:
    queue = Queue()
    with server(("127.0.0.1", 0), queue) as serving:
        threading.Thread(target=serving.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}/", queue
        serving.shutdown()


def test_notifications_are_taken(address: tuple[str, Queue]) -> None:
    url, queue = address
    with urllib.request.urlopen(urllib.request.Request(url, events(event())), timeout=10) as said:
        assert said.status == 204
    assert queue.next() == Wanted("image", DIGEST)


@pytest.mark.parametrize(("body", "length", "status"), [(b"{}", "2", 400), (b"", "99999999", 413)])
def test_other_requests_are_refused(
    address: tuple[str, Queue], body: bytes, length: str, status: int
) -> None:
    request = urllib.request.Request(address[0], body, {"Content-Length": length})
    with pytest.raises(urllib.error.HTTPError) as told:
        urllib.request.urlopen(request, timeout=10)
    with told.value:
        assert told.value.code == status


def pushed(layout: Layout, repository: Repository) -> Descriptor:
    """Push the image of a layout without a tag."""
    manifest, kind = layout.manifest("image")
    plain = json.loads(manifest)
    for each in (plain["config"], *plain["layers"]):
        repository.put_blob(layout.blob(each["digest"]), each["digest"])
    repository.put_manifest(manifest, (found := Descriptor.of(kind, manifest)).digest)
    return found


def test_all_images_of_an_index_are_made_lazy_once(tmp_path: Path, conforming: str) -> None:
    access, name = Access(conforming), f"{tmp_path.name.lower()}/image"
    store = Remote(Repository(access, name))
    base = (archive(("base", {})), "gzip")
    images = [
        pushed(
            image(tmp_path / str(number), [base, (archive((str(number), {})), "")]),
            store.repository,
        )
        for number in range(2)
    ]
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [one.plain() for one in images]}
    store.repository.put_manifest(json.dumps(index).encode(), "both", INDEX)
    assert name in repositories(access)
    assert store.repository.tags() == ["both"]

    def made(wanted: str) -> int:
        options = {"converter": converter(print), "cache": tmp_path / "cache", "progress": print}
        return make_lazy(store, wanted, **options)  # type: ignore[arg-type]

    assert made("both") == 2
    assert made("both") == 0
    for one in images:
        found = artifact_of(store, one.digest)
        assert found
        assert len(found.layers) == 2
        # A push of a lazy form is told, too.
        assert made(found.descriptor.digest) == 0


def test_an_image_that_cannot_be_converted_is_told(tmp_path: Path, conforming: str) -> None:
    store = Remote(Repository(Access(conforming), f"{tmp_path.name.lower()}/image"))
    layout = image(tmp_path / "image", [(b"no archive at all" * 100, "")])
    one = pushed(layout, store.repository)
    with pytest.raises(FleetfootError):
        make_lazy(store, one.digest, converter=converter(print), cache=tmp_path, progress=print)
    assert artifact_of(store, one.digest) is None


def layers(folder: Path, ages: Sequence[int]) -> list[Path]:
    made = []
    for number, age in enumerate(ages):
        one = folder / f"{hashlib.sha256(bytes([number])).hexdigest()}-0123456789ab"
        one.mkdir()
        (one / "image").write_bytes(bytes(100))
        (folder / f".{one.name.partition('-')[0]}.lock").touch()
        os.utime(one, (1000 - age, 1000 - age))
        made.append(one)
    return made


def test_the_oldest_layers_leave_the_cache(tmp_path: Path) -> None:
    made = layers(tmp_path, [3, 1, 2])
    trim(tmp_path, 300)
    assert all(each.exists() for each in made)
    trim(tmp_path, 150)
    assert [each.exists() for each in made] == [False, True, False]
    assert len(list(tmp_path.glob(".*.lock"))) == 1
    trim(tmp_path / "absent", 0)
