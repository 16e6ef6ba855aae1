"""What registries do to their clients: challenges, redirects, broken connections, wrong bytes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from fleetfoot.errors import FleetfootError
from fleetfoot.lazyfs.distribution import (
    MANIFEST,
    AbsentError,
    Access,
    Reference,
    Repository,
    UnreachableError,
)
from tests.unit.lazyfs.registry import Registry, digest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATA = bytes(range(256)) * 1024


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry(tmp_path) as made:
        made.add(DATA)
        yield made


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("host/a", ("host", "a", "latest", "")),
        ("host:5000/a/b-c:v1", ("host:5000", "a/b-c", "v1", "")),
        (f"host/a@{digest(b'')}", ("host", "a", "", digest(b""))),
        (f"host/a:v1@{digest(b'')}", ("host", "a", "v1", digest(b""))),
    ],
)
def test_references_are_read(text: str, parts: tuple[str, ...]) -> None:
    found = Reference.parse(text)
    assert (found.host, found.name, found.tag, found.digest) == parts
    assert Reference.parse(str(found)) == found


@pytest.mark.parametrize(
    "text", ["", "a", "host/", "host/A", "host/../a", "host/a:", "host/a@sha256:1"]
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(FleetfootError, match="no reference of an image"):
        Reference.parse(text)


def test_ranges_come_over_kept_connections(registry: Registry) -> None:
    repository = registry.repository()
    for offset in (0, 1000, len(DATA) - 10):
        assert repository.range(digest(DATA), offset, 10) == DATA[offset : offset + 10]
    assert len(repository._idle) == 1


def test_a_connection_that_was_closed_meanwhile_is_replaced(registry: Registry) -> None:
    repository = registry.repository()
    repository.range(digest(DATA), 0, 10)
    registry.drop = 1
    assert repository.range(digest(DATA), 0, 10) == DATA[:10]


def test_a_registry_that_is_away_may_come_back(registry: Registry) -> None:
    repository = registry.repository()
    registry.drop = 1
    with pytest.raises(UnreachableError, match="does not answer"):
        repository.range(digest(DATA), 0, 10)
    for status in (500, 503, 429):
        registry.status = status
        with pytest.raises(UnreachableError, match=f"answered {status}"):
            repository.range(digest(DATA), 0, 10)
    registry.status = 0
    assert repository.range(digest(DATA), 0, 10) == DATA[:10]


def test_one_that_refuses_does_not(registry: Registry) -> None:
    registry.status = 403
    with pytest.raises(FleetfootError, match="answered 403") as told:
        registry.repository().range(digest(DATA), 0, 10)
    assert not isinstance(told.value, UnreachableError)


def test_a_registry_of_another_authority_is_not_asked(registry: Registry) -> None:
    with pytest.raises(UnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
        Repository(Access(registry.url), "image").range(digest(DATA), 0, 10)
    assert registry.seen == []


def test_what_is_not_there(registry: Registry) -> None:
    repository = registry.repository()
    with pytest.raises(AbsentError, match="has no"):
        repository.range(digest(b"other"), 0, 10)
    with pytest.raises(AbsentError):
        repository.manifest("none")
    assert not repository.has(digest(b"other"))
    assert repository.has(digest(DATA))


def test_fewer_bytes_than_were_asked_for_are_not_used(registry: Registry) -> None:
    with pytest.raises(FleetfootError, match="5 bytes came for 10"):
        registry.repository().range(digest(DATA), len(DATA) - 5, 10)


def test_a_blob_that_is_another_or_too_large_is_not_used(registry: Registry) -> None:
    registry.blobs[digest(b"wanted")] = b"other"
    with pytest.raises(FleetfootError, match="is not that"):
        registry.repository().blob(digest(b"wanted"), 100)
    with pytest.raises(FleetfootError, match="gives more than the 100 bytes"):
        registry.repository().blob(digest(DATA), 100)


def test_a_manifest_that_is_another_is_not_used(registry: Registry) -> None:
    registry.manifests[digest(b"{}")] = (b"[]", MANIFEST)
    with pytest.raises(FleetfootError, match="what came for"):
        registry.repository().manifest(digest(b"{}"))


def test_a_credential_that_was_renewed_is_read_anew(registry: Registry) -> None:
    current = ["Basic old"]
    registry.accepts = "Basic old"
    repository = registry.repository(lambda: current[0])
    repository.range(digest(DATA), 0, 10)
    registry.accepts = current[0] = "Basic new"
    assert repository.range(digest(DATA), 0, 10) == DATA[:10]
    registry.accepts = "Basic newer"
    with pytest.raises(FleetfootError, match="answered 401"):
        repository.range(digest(DATA), 0, 10)


def test_a_token_is_fetched_where_the_registry_says(registry: Registry) -> None:
    registry.realm = f"{registry.url}/token"
    registry.accepts, registry.tokens = "Bearer first", {"Basic me": "first"}
    repository = registry.repository(lambda: "Basic me")
    assert repository.range(digest(DATA), 0, 10) == DATA[:10]
    asked = next(path for _, path, _ in registry.seen if path.startswith("/token"))
    assert asked == "/token?service=here&scope=repository%3Aimage%3Apull"
    # It expires; the next one is fetched with the credential, not with the token before.
    registry.accepts, registry.tokens = "Bearer second", {"Basic me": "second"}
    assert repository.range(digest(DATA), 0, 10) == DATA[:10]


def test_a_password_goes_to_no_unsafe_place(registry: Registry) -> None:
    registry.accepts, registry.realm = "Bearer x", "http://127.0.0.1:1/token"
    with pytest.raises(FleetfootError, match="no safe place for tokens"):
        registry.repository(lambda: "Basic me").range(digest(DATA), 0, 10)


def test_a_redirect_elsewhere_takes_no_credential_along(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    with Registry(folders[0]) as first, Registry(folders[1]) as second:
        second.add(DATA)
        first.elsewhere, first.accepts = second.url, "Basic me"
        both = tmp_path / "both.crt"
        both.write_bytes(first.authority.read_bytes() + second.authority.read_bytes())
        repository = Repository(Access(first.url, both, lambda: "Basic me"), "image")
        assert repository.range(digest(DATA), 5, 10) == DATA[5:15]
        assert [shown for _, _, shown in second.seen] == [""]


def test_a_registry_without_ranges_is_not_read_to_the_end(registry: Registry) -> None:
    registry.ranges = False
    with pytest.raises(FleetfootError, match="gives more than the 10 bytes"):
        registry.repository().range(digest(DATA), 0, 10)


def test_containerds_description_of_a_registry_is_read(registry: Registry, tmp_path: Path) -> None:
    (folder := tmp_path / "certs.d" / "registry.example:5000").mkdir(parents=True)
    described = (
        f'server = "{registry.url}"\n[host."{registry.url}"]\n'
        f'ca = "{registry.authority}"\n[host."{registry.url}".header]\nAuthorization = "Basic %s"\n'
    )
    (folder / "hosts.toml").write_text(described % "me")
    access = Access.of_containerd(tmp_path / "certs.d", "registry.example:5000")
    registry.accepts = "Basic me"
    repository = Repository(access, "image")
    assert repository.range(digest(DATA), 0, 10) == DATA[:10]
    (folder / "hosts.toml").write_text(described % "again")
    registry.accepts = "Basic again"
    assert repository.range(digest(DATA), 0, 10) == DATA[:10]
    assert Access.of_containerd(tmp_path, "other:1").url == "https://other:1"
    (folder / "hosts.toml").write_text("[")
    with pytest.raises(FleetfootError, match="cannot be read"):
        Access.of_containerd(tmp_path / "certs.d", "registry.example:5000")


def test_credentials_of_skopeo_and_docker_are_read(tmp_path: Path) -> None:
    (auth := tmp_path / "auth.json").write_text(json.dumps({"auths": {"host:1": {"auth": "bWU="}}}))
    assert Access.of_docker(auth, "host:1").authorization() == "Basic bWU="
    assert Access.of_docker(auth, "other").authorization() == ""
    assert Access.of_docker(tmp_path / "none", "host:1").authorization() == ""


def test_blobs_are_pushed_once(registry: Registry, tmp_path: Path) -> None:
    repository = registry.repository()
    (tmp_path / "blob").write_bytes(b"new")
    for _ in range(2):
        repository.put_blob(tmp_path / "blob", digest(b"new"))
    assert registry.blobs[digest(b"new")] == b"new"
    puts = [path for method, path, _ in registry.seen if method == "PUT"]
    assert len(puts) == 1
    assert "state=a" in puts[0]
    assert "digest=sha256%3A" in puts[0]
