"""What is pushed is made lazy: once, whatever else was pushed, and later where that failed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import urllib.request
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from fleetfoot.lazyfs.artifact import Descriptor
from fleetfoot.lazyfs.building import converter
from fleetfoot.lazyfs.distribution import INDEX, MANIFEST, Access, Repository, repositories
from fleetfoot.lazyfs.pushed import (
    Queue,
    Service,
    Wanted,
    images_of,
    server,
    trim,
    wanted_of,
)
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


def test_what_is_pushed_now_comes_before_what_was_found() -> None:
    queue, old, new = Queue(), Wanted("old", "1"), Wanted("new", DIGEST)
    queue.add(old, behind=True)
    queue.add(new)
    queue.add(new, behind=True)
    assert [queue.next(), queue.next()] == [new, old]


@pytest.fixture
def address() -> Iterator[tuple[str, Queue]]:
    queue = Queue()
    with server(("127.0.0.1", 0), queue, print) as serving:
        threading.Thread(target=serving.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}/", queue
        serving.shutdown()


def test_notifications_are_taken_and_what_is_none_does_not_stop_them(
    address: tuple[str, Queue],
) -> None:
    url, queue = address
    for body in (b"{}", b"[" * 100_000, events(event())):
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=10) as said:
            assert said.status == 204
    assert queue.next() == Wanted("image", DIGEST)


def put(layout: Layout, repository: Repository) -> Descriptor:
    """Push the image of a layout without a tag."""
    manifest, kind = layout.manifest("image")
    plain = json.loads(manifest)
    for each in (plain["config"], *plain["layers"]):
        repository.put_blob(layout.blob(each["digest"]), each["digest"])
    repository.put_manifest(manifest, (found := Descriptor.of(kind, manifest)).digest)
    return found


@pytest.fixture
def place(tmp_path: Path, conforming: str) -> tuple[Service, Remote]:
    """A service, and a repository of its registry."""
    access, cache = Access(conforming), tmp_path / "cache"
    cache.mkdir()
    made = Service(access, converter(print), cache, 1 << 30, Queue(), print)
    return made, Remote(Repository(access, f"{tmp_path.name.lower()}/image"))


def test_all_images_of_an_index_are_made_lazy_once(
    tmp_path: Path, place: tuple[Service, Remote]
) -> None:
    service, store = place
    base, bad = (archive(("base", {})), "gzip"), (b"no archive at all" * 100, "")
    others = [(archive((str(number), {})), "") for number in range(2)]
    images = [
        put(image(tmp_path / str(number), [base, other]), store.repository)
        for number, other in enumerate([others[0], bad, others[1]])
    ]
    attested = {**json.loads(store.manifest(images[0].digest)[0]), "annotations": {"a": "b"}}
    attested["layers"][0]["mediaType"] = "application/vnd.in-toto+json"
    beside = Descriptor.of(MANIFEST, json.dumps(attested).encode())
    store.repository.put_manifest(json.dumps(attested).encode(), beside.digest)
    listed = [one.plain() for one in (*images, beside)]
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}
    store.repository.put_manifest(json.dumps(index).encode(), "all", INDEX)
    name = str(store).partition("/")[2]
    assert name in repositories(service.access)
    assert store.repository.tags() == ["all"]

    def looked() -> list[bool]:
        service.queue.add(Wanted(name, "all"))
        service.work()
        return [artifact_of(store, one.digest) is not None for one in (*images, beside)]

    assert looked() == [True, False, True, False]
    # The bad one is not tried again, and the others are left as they are.
    assert service.refused == {images[1].digest}
    before = artifact_of(store, images[0].digest)
    assert before
    assert looked() == [True, False, True, False]
    assert artifact_of(store, images[0].digest) == before
    # A push of a lazy form is told, too.
    assert images_of(store, before.descriptor.digest) == []


@pytest.mark.parametrize("config", [b"[" * 100_000, b"1", b"{}"])
def test_a_configuration_that_is_none_is_refused_once(
    tmp_path: Path, place: tuple[Service, Remote], config: bytes
) -> None:
    service, store = place
    layout = image(tmp_path / "image", [(archive(("a", {})), "")])
    plain = json.loads(layout.manifest("image")[0])
    for each in plain["layers"]:
        store.repository.put_blob(layout.blob(each["digest"]), each["digest"])
    plain["config"] = Descriptor.of(plain["config"]["mediaType"], config).plain()
    store.repository.put_blob(config, plain["config"]["digest"])
    store.repository.put_manifest(json.dumps(plain).encode(), "bad")
    service.queue.add(Wanted(str(store).partition("/")[2], "bad"))
    service.work()
    assert len(service.refused) == 1


def test_a_layer_that_unpacks_to_more_than_there_is_room_for_is_refused(
    tmp_path: Path, place: tuple[Service, Remote], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, store = place
    bomb = archive(("a", {"data": bytes(1 << 20)}))
    one = put(image(tmp_path / "image", [(bomb, "gzip")]), store.repository)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 20))
    service.queue.add(Wanted(str(store).partition("/")[2], one.digest))
    service.work()
    assert service.refused == {one.digest}


def test_what_is_gone_or_away_stops_nothing(place: tuple[Service, Remote]) -> None:
    service, _ = place
    service.queue.add(Wanted("nowhere", "1"))
    service.work()
    away = replace(service, access=Access("http://127.0.0.1:1"))
    away.queue.add(Wanted("image", "1"))
    away.work()
    assert away.queue.again(Wanted("image", "1")) == 60  # it was the first failure


def test_an_image_that_ends_the_process_is_left_after_some_attempts(tmp_path: Path) -> None:
    (tmp_path / "layers" / ".aa-left").mkdir(parents=True)
    for attempts, refused in ((2, set[str]()), (3, {DIGEST})):
        (tmp_path / "trying").write_text(json.dumps({DIGEST: attempts}))
        service = Service(
            Access("http://127.0.0.1:1"), converter(print), tmp_path, 1, Queue(), print
        )
        service.begin()
        assert service.refused == refused
    service.refused.clear()
    service.begin()  # the next time it is tried again
    assert service.refused == set()
    assert not any((tmp_path / "layers").iterdir())


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
