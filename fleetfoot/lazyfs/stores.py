"""Where images and their lazy forms are kept: a repository of a registry, or an OCI layout."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from fleetfoot.errors import FleetfootError
from fleetfoot.lazyfs.artifact import CONVERTER, EMPTY, KIND, Artifact, Descriptor
from fleetfoot.lazyfs.distribution import (
    INDEX,
    MANIFEST,
    AbsentError,
    Repository,
    manifests_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

__all__ = ["REF_NAME", "Layout", "Remote", "Store", "artifact_of"]

REF_NAME = "org.opencontainers.image.ref.name"
"""Annotation with which an OCI layout names its images."""
_SMALL = 40 << 20  # bytes of what is read into memory: manifests and tables
_ATTEMPTS = 5  # to put an index that others change, too


class Store(Protocol):
    """Holds images, and takes what is attached to them."""

    def manifest(self, wanted: str) -> tuple[bytes, str]:
        """Return a manifest or an index by tag or digest, and its media type."""

    def blob(self, digest: str) -> bytes:
        """Return a small blob, verified."""

    def open(self, digest: str) -> AbstractContextManager[IO[bytes]]:
        """Open a blob to read it piece by piece, unverified."""

    def piece(self, digest: str, offset: int, count: int) -> bytes:
        """Return bytes of a blob, unverified."""

    def referrers(self, digest: str) -> list[dict[str, Any]]:
        """Return descriptors of the lazy forms that are attached to a manifest."""

    def attach(self, artifact: Artifact, blobs: Mapping[str, Path]) -> None:
        """Keep a lazy form, in the place of an earlier one of the same image.

        Args:
            artifact: The lazy form.
            blobs: Files with its sector images, tables, trace and packs, by digest: those that may
                not be there yet.
        """


def artifact_of(store: Store, digest: str) -> Artifact | None:
    """Return the lazy form of an image, or None.

    Args:
        store: Where the image is.
        digest: Its manifest's.

    Raises:
        FleetfootError: There is one, and it is not usable.
    """
    listed = [(_converter(each), Descriptor.parse(each).digest) for each in store.referrers(digest)]
    if not listed:
        return None
    # Where an earlier one could not be removed, the same one is chosen whoever asks.
    artifact = Artifact.parse(store.manifest(max(listed)[1])[0])
    if artifact.subject.digest != digest:
        raise FleetfootError(
            f"a lazy form of {artifact.subject.digest} is attached to {digest}",
            "it is not used, and the image is pulled as ever",
            "convert the image again (`fleetfoot lazy convert`)",
        )
    return artifact


def _converter(listed: Any) -> str:
    notes = listed.get("annotations")
    return str(notes.get(CONVERTER, "")) if isinstance(notes, dict) else ""


class Remote:
    """A repository of a registry."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository

    def __str__(self) -> str:
        return str(self.repository)

    def manifest(self, wanted: str) -> tuple[bytes, str]:
        """Return a manifest or an index by tag or digest, and its media type."""
        return self.repository.manifest(wanted)

    def blob(self, digest: str) -> bytes:
        """Return a small blob, verified."""
        return self.repository.blob(digest, _SMALL)

    def open(self, digest: str) -> AbstractContextManager[IO[bytes]]:
        """Open a blob to read it piece by piece, unverified."""
        return self.repository.stream(digest)

    def piece(self, digest: str, offset: int, count: int) -> bytes:
        """Return bytes of a blob, unverified."""
        return self.repository.range(digest, offset, count)

    def referrers(self, digest: str) -> list[dict[str, Any]]:
        """Return descriptors of the lazy forms that are attached to a manifest."""
        return self.repository.referrers(digest, KIND)

    def attach(self, artifact: Artifact, blobs: Mapping[str, Path]) -> None:
        """Push a lazy form; list it under the subject's tag where there is no referrers API."""
        for digest, path in blobs.items():
            self.repository.put_blob(path, digest)
        self.repository.put_blob(EMPTY, Descriptor.of("", EMPTY).digest)
        mine = artifact.descriptor
        before = self.referrers(artifact.subject.digest)
        said = self.repository.put_manifest(artifact.dump(), mine.digest)
        if "oci-subject" in said:
            for each in before:
                if each["digest"] != mine.digest:
                    self.repository.remove_manifest(each["digest"])
            return
        # Others may attach theirs meanwhile, and the last to write wins: so it is looked at again.
        for _ in range(_ATTEMPTS):
            tag = artifact.subject.digest.replace(":", "-")
            listed = self._listed(tag)
            wanted = _listing(listed, artifact)
            if listed == wanted:
                return
            index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": wanted}
            self.repository.put_manifest(json.dumps(index).encode(), tag, INDEX)
        raise FleetfootError(
            f"others keep changing the list of what belongs to {artifact.subject.digest}",
            "nodes may not find the lazy form",
            "run it again when they are done",
        )

    def _listed(self, tag: str) -> list[dict[str, Any]]:
        try:
            found, _ = self.repository.manifest(tag)
        except AbsentError:
            return []
        return manifests_of(found)


class Layout:
    """An OCI layout: a folder with images, as skopeo, umoci and buildah write it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        if not (folder / "oci-layout").is_file():
            raise FleetfootError(
                f"{folder} is no OCI layout",
                "nothing was read",
                "name a folder with oci-layout in it",
            )

    def __str__(self) -> str:
        return str(self._folder)

    def manifest(self, wanted: str) -> tuple[bytes, str]:
        """Return a manifest or an index by tag or digest, and its media type."""
        if wanted.startswith("sha256:"):
            data = self.blob(wanted)
            return data, str(json.loads(data).get("mediaType", MANIFEST))
        tagged = {
            each.get("annotations", {}).get(REF_NAME): each
            for each in self._index()["manifests"]
            if each.get("artifactType") != KIND
        }
        if wanted not in tagged:
            known = ", ".join(sorted(map(str, tagged))) or "none"
            raise AbsentError(
                f"{self} has no image {wanted!r}", "nothing was read", f"known: {known}"
            )
        found = Descriptor.parse(tagged[wanted])
        return self.blob(found.digest), found.kind

    def blob(self, digest: str) -> bytes:
        """Return a small blob, verified."""
        try:
            data = self._path(digest).read_bytes()
        except FileNotFoundError as missing:
            raise AbsentError(f"{self} has no {digest}") from missing
        if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
            raise FleetfootError(f"{self}: {digest} is damaged", "it is not used", "copy it anew")
        return data

    @contextlib.contextmanager
    def open(self, digest: str) -> Iterator[IO[bytes]]:
        """Open a blob to read it piece by piece, unverified."""
        try:
            stream = self._path(digest).open("rb")
        except FileNotFoundError as missing:
            raise AbsentError(f"{self} has no {digest}") from missing
        with stream:
            yield stream

    def piece(self, digest: str, offset: int, count: int) -> bytes:
        """Return bytes of a blob, unverified."""
        with self.open(digest) as stream:
            stream.seek(offset)
            return stream.read(count)

    def referrers(self, digest: str) -> list[dict[str, Any]]:
        """Return descriptors of the lazy forms that are attached to a manifest."""
        lazy = [each for each in self._index()["manifests"] if each.get("artifactType") == KIND]
        found = [Artifact.parse(self.blob(Descriptor.parse(each).digest)) for each in lazy]
        pairs = zip(lazy, found, strict=True)
        return [each for each, artifact in pairs if artifact.subject.digest == digest]

    def attach(self, artifact: Artifact, blobs: Mapping[str, Path]) -> None:
        """Add a lazy form to the layout."""
        for digest, path in blobs.items():
            if not self._path(digest).exists():
                with _written(self._path(digest)) as part, path.open("rb") as source:
                    shutil.copyfileobj(source, part)
        for data in (EMPTY, artifact.dump()):
            with _written(self._path(Descriptor.of("", data).digest)) as part:
                part.write(data)
        index = self._index()
        before = {each["digest"] for each in self.referrers(artifact.subject.digest)}
        others = [each for each in index["manifests"] if each["digest"] not in before]
        index["manifests"] = [*others, artifact.listed]
        with _written(self._folder / "index.json") as part:
            part.write(json.dumps(index, separators=(",", ":")).encode())

    def _index(self) -> Any:
        return json.loads((self._folder / "index.json").read_text())

    def _path(self, digest: str) -> Path:
        return _blob(self._folder, digest)


def _blob(folder: Path, digest: str) -> Path:
    kind, _, name = digest.partition(":")
    if kind != "sha256" or not name.isalnum():
        raise FleetfootError(f"{digest!r} is no digest", "nothing is read")
    return folder / "blobs" / kind / name


def _listing(listed: list[dict[str, Any]], artifact: Artifact) -> list[dict[str, Any]]:
    """Return what belongs to an image, with this in the place of earlier lazy forms of it."""
    mine = artifact.listed
    if mine in listed and sum(each.get("artifactType") == KIND for each in listed) == 1:
        return listed
    others = [each for each in listed if each.get("artifactType") != KIND]
    return [*others, mine]


@contextlib.contextmanager
def _written(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            os.fchmod(handle, 0o644)
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
