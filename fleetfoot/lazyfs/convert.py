"""Conversion: every layer of an image becomes a sector image with its table, once.

The programs come from the image `converter`, so the same layer gives the same bytes on any host.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fleetfoot.errors import FleetfootError
from fleetfoot.lazyfs import trace
from fleetfoot.lazyfs.artifact import Artifact, Descriptor, LazyLayer, layers_of
from fleetfoot.lazyfs.distribution import INDEXES, MANIFEST
from fleetfoot.lazyfs.layers import Directory, Rewriter, Tree
from fleetfoot.lazyfs.stores import REF_NAME, artifact_of
from fleetfoot.lazyfs.table import LARGEST, PACKER, Table, hex_digest
from fleetfoot.locks import alone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from fleetfoot.lazyfs.stores import Store

__all__ = [
    "FORM",
    "OPTIONS",
    "Converted",
    "Converter",
    "attach",
    "attach_traced",
    "convert",
    "forget_trace",
    "manifest_of",
    "unpack",
    "versions",
    "wrong_packs",
]

FORM = 2
"""The code that rewrites layers: a new number where the same layer becomes other bytes."""

_PIECE = 1 << 20
_LONGEST_SECONDS = 7200  # that a service waits for one layer
_ARCHIVE = "application/vnd.oci.image.layer.v1.tar"
OPTIONS = ("--tar=f", "--aufs", "--quiet", "--mkfs-time", "-T0", "-Uclear", "-b4096")
"""Settings that the bytes depend on. Times and names come from the layer alone. It is not packed
here: blocks are, on their way. -Ededupe would save a little, but 1.8.6 does not end with it on some
layers of small files."""


@dataclass(frozen=True)
class Converter:
    """What converts one layer.

    Attributes:
        tree: Root with `mkfs.erofs` and `zstd` (image `converter`); this machine's own if there is
            none, for a service that its unit shuts in.
        version: Of these programs and of this code: layers are converted once for each.
    """

    tree: Path | None
    version: str

    def command(self, work: Path, *argv: str) -> list[str]:
        """Return a command line that runs a program of the tree, in the folder `work`."""
        if self.tree is None:
            # mkfs.erofs was seen to go on for ever.
            within = ["timeout", "--signal=KILL", str(_LONGEST_SECONDS)]
            return ["env", f"--chdir={work}", f"TMPDIR={work}", "TZ=UTC", *within, *argv]
        return [
            *("bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", str(self.tree), "/"),
            *("--bind", str(work), "/mnt", "--dev", "/dev", "--proc", "/proc"),
            *("--chdir", "/mnt", "--setenv", "TMPDIR", "/mnt", "--setenv", "TZ", "UTC"),
            *argv,
        ]

    @property
    def settings(self) -> str:
        """What the bytes of a sector image depend on, beside the layer."""
        return f"{self.version} {' '.join(OPTIONS)}, {PACKER}"


@dataclass(frozen=True)
class _Layer(Descriptor):
    """A layer, and what it must unpack to (its diff ID)."""

    unpacked: str


@dataclass(frozen=True)
class Converted:
    """An image's lazy form, and where its pieces are.

    Attributes:
        artifact: The lazy form.
        blobs: Files with sector images and tables, by digest.
        fresh: How many layers were converted now; the others had been before.
    """

    artifact: Artifact
    blobs: Mapping[str, Path]
    fresh: int


def versions(packages: Mapping[str, str]) -> str:
    """Return what says which programs convert: of packages' versions, those that matter."""
    return f"form {FORM}, erofs-utils {packages['erofs-utils']}"


def manifest_of(store: Store, wanted: str, platform: str) -> tuple[bytes, str]:
    """Return an image's manifest and media type; of several platforms, that of one.

    Args:
        store: Where it is.
        wanted: Tag or digest.
        platform: `os/architecture`.

    Raises:
        FleetfootError: There is none, or not for this platform.
    """
    data, kind = store.manifest(wanted)
    if kind not in INDEXES:
        return data, kind
    listed = json.loads(data)["manifests"]
    named = {
        "{os}/{architecture}".format(**each["platform"]): each
        for each in listed
        if {"os", "architecture"} <= set(each.get("platform", {}))
    }
    if platform not in named:
        raise FleetfootError(
            f"{store} has {wanted} for {', '.join(sorted(named)) or 'no platform'}, not {platform}",
            "nothing was converted",
            "choose another with --platform",
        )
    return store.manifest(Descriptor.parse(named[platform]).digest)


def convert(
    store: Store,
    manifest: bytes,
    kind: str,
    *,
    converter: Converter,
    cache: Path,
    progress: Callable[[str], None],
    largest: int = LARGEST,
) -> Converted:
    """Convert an image's layers.

    Layers are kept in the cache by digest; one that is there is not converted again, and a killed
    run leaves only whole ones.

    Args:
        store: Where the image is.
        manifest: Its manifest.
        kind: The manifest's media type.
        converter: What converts.
        cache: Where converted layers are kept.
        progress: Takes one line at a time for a person to follow.
        largest: Most bytes that a layer may unpack to.

    Raises:
        FleetfootError: A layer is damaged, of an unknown kind, or cannot be converted.
    """
    layers = layers_of(manifest)
    config = json.loads(store.blob(Descriptor.parse(json.loads(manifest)["config"]).digest))
    unpacked = config.get("rootfs", {}).get("diff_ids", [])
    if len(unpacked) != len(layers) or not layers:
        raise FleetfootError(
            f"the image has {len(layers)} layers, its configuration names {len(unpacked)}",
            "nothing was converted",
            "build the image again",
        )
    home = cache / "layers"
    home.mkdir(parents=True, exist_ok=True)
    below, done, blobs, fresh = Tree(), dict[str, LazyLayer](), dict[str, Path](), 0
    for number, (packed, plain) in enumerate(zip(layers, unpacked, strict=True), 1):
        layer = _Layer(packed.kind, packed.digest, packed.size, plain)
        name = f"layer {number} of {len(layers)}, {layer.size / 2**20:.1f} MiB"
        with alone(home / f".{layer.digest[7:]}.lock"):
            found = _kept(home, layer, below, converter)
            if found is None:
                progress(f"{name}: converting")
                found = _convert(store, layer, below, converter, home=home, largest=largest)
                fresh += 1
            else:
                progress(f"{name}: converted before")
        table = Table.parse((found / "table").read_bytes())
        lazy = LazyLayer.of(layer.digest, table)
        blobs[lazy.image.digest] = found / "packed"
        blobs[lazy.table.digest] = found / "table"
        done.setdefault(layer.digest, lazy)
        below.add(_entries(json.loads((found / "entries.json").read_text())["entries"]))
    subject = Descriptor.of(kind, manifest)
    return Converted(Artifact(subject, tuple(done.values()), converter.settings), blobs, fresh)


def unpack(
    store: Store, manifest: bytes, folder: Path, tag: str, converter: Converter
) -> list[Descriptor]:
    """Write an OCI layout with one image of a store, its layers not compressed.

    Args:
        store: Where the image is.
        manifest: Its manifest.
        folder: Folder to make.
        tag: Name of the image there.
        converter: Its programs unpack.

    Returns:
        The image's layers as they are in the store.

    Raises:
        FleetfootError: A blob is damaged or missing.
    """
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    plain, layers = json.loads(manifest), layers_of(manifest)
    config = store.blob(Descriptor.parse(plain["config"]).digest)
    plain["layers"] = []
    for layer in layers:
        packed, archive = folder / "packed", folder / "archive"
        _fetch(store, layer, packed)
        with _unpacked(layer.kind, packed, converter, folder) as source, archive.open("wb") as to:
            while piece := source.read(_PIECE):
                to.write(piece)
        packed.unlink()
        digest, size = source.hexdigest(), archive.stat().st_size
        archive.rename(blobs / digest[7:])
        plain["layers"].append(Descriptor(_ARCHIVE, digest, size).plain())
    for data in (config, changed := json.dumps(plain).encode()):
        (blobs / Descriptor.of("", data).digest[7:]).write_bytes(data)
    tagged = {**Descriptor.of(MANIFEST, changed).plain(), "annotations": {REF_NAME: tag}}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [tagged]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return layers


def _convert(
    store: Store, layer: _Layer, below: Tree, converter: Converter, *, home: Path, largest: int
) -> Path:
    prefix = f".{layer.digest[7:]}-"
    for left in home.glob(f"{prefix}*"):  # of runs that were killed: the layer's lock is ours
        shutil.rmtree(left)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=home))
    try:
        packed = work / "layer"
        _fetch(store, layer, packed)
        rewriter = Rewriter(below.folders, largest)
        _make(rewriter, layer, packed, converter, work)
        packed.unlink()
        with (work / "image").open("rb") as image, (work / "packed").open("wb") as to:
            table = Table.of(image, to)
        (work / "image").unlink()
        (work / "table").write_bytes(table.dump())
        kept = {"entries": _plain(rewriter.entries), "implied": _plain(rewriter.implied)}
        (work / "entries.json").write_text(json.dumps(kept))
        final = home / _name(layer, converter, kept["implied"])
        work.rename(final)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise FleetfootError(
            f"the disk that holds {home} is full",
            "the image has no lazy form; nothing of the layer was left behind",
            f"free at least {6 * layer.size >> 20} MiB, or point FLEETFOOT_CACHE to another disk",
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return final


def _make(
    rewriter: Rewriter, layer: _Layer, packed: Path, converter: Converter, work: Path
) -> None:
    argv = converter.command(work, "mkfs.erofs", *OPTIONS, "image")
    with (
        (work / "said").open("w+b") as said,
        _unpacked(layer.kind, packed, converter, work) as source,
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=said, stderr=said) as process,
    ):
        assert process.stdin  # noqa: S101  # for mypy: it was asked for
        try:
            with contextlib.suppress(BrokenPipeError):  # what it says then is told below
                rewriter.write(source, process.stdin.write)
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        except BaseException:
            process.kill()
            raise
        if process.wait():
            said.seek(0)
            told = said.read().decode(errors="replace")[-500:]
            if os.strerror(errno.ENOSPC) in told:
                raise OSError(errno.ENOSPC, told)
            raise FleetfootError(
                f"mkfs.erofs failed on {layer.digest}: {told}",
                "the image has no lazy form; nodes pull it as ever",
            )
        (work / "said").unlink()
        if source.hexdigest() != layer.unpacked:
            raise FleetfootError(
                f"{layer.digest} unpacks to {source.hexdigest()}, the image says {layer.unpacked}",
                "nothing was converted",
                "copy or build the image again",
            )


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class _Hashed:
    """A stream to read, with the digest of what was read."""

    def __init__(self, stream: _Readable) -> None:
        self._stream, self._digest = stream, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._digest.update(data)
        return data

    def hexdigest(self) -> str:
        return hex_digest(self._digest.digest())


@contextlib.contextmanager
def _unpacked(kind: str, packed: Path, converter: Converter, work: Path) -> Iterator[Any]:
    # `application/vnd.oci.image.layer.v1.tar+gzip`, `...rootfs.diff.tar.gzip`, `...layer.v1.tar`
    ending = kind.replace("+", ".").rpartition(".")[2]
    if ending == "tar":
        with packed.open("rb") as stream:
            yield _Hashed(stream)
    elif ending == "gzip":
        with gzip.open(packed) as unpacked, _damage_told():
            yield _Hashed(unpacked)
    elif ending == "zstd":
        argv = converter.command(work, "zstd", "--decompress", "--stdout", "--quiet", packed.name)
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
            assert process.stdout  # noqa: S101  # for mypy: it was asked for
            yield _Hashed(process.stdout)
            # What it could not unpack is missing, and so the digest is another.
    else:
        raise FleetfootError(
            f"a layer is {kind}, which is neither a plain, a gzip nor a zstd archive",
            "the image has no lazy form; nodes pull it as ever",
        )


@contextlib.contextmanager
def _damage_told() -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise FleetfootError(
            f"a layer cannot be unpacked: {error}",
            "nothing was converted",
            "copy or build the image again",
        ) from error


def _fetch(store: Store, layer: Descriptor, target: Path) -> None:
    digest, size = hashlib.sha256(), 0
    with store.open(layer.digest) as source, target.open("wb") as copy:
        while piece := source.read(_PIECE):
            digest.update(piece)
            size += len(piece)
            copy.write(piece)
    if (found := hex_digest(digest.digest())) != layer.digest or size != layer.size:
        raise FleetfootError(
            f"what {store} has as {layer.digest} ({layer.size} bytes) is {found} ({size} bytes)",
            "nothing was converted",
            "copy or build the image again",
        )


def _kept(home: Path, layer: Descriptor, below: Tree, converter: Converter) -> Path | None:
    """Return the converted layer, if there is one that was made over the same folders."""
    for folder in sorted(home.glob(f"{layer.digest[7:]}-*")):
        implied = json.loads((folder / "entries.json").read_text())["implied"]
        over = {path: below.folders.get(path) or Directory() for path in implied}
        if folder.name == _name(layer, converter, _plain(over)):
            return folder
    return None


def _name(layer: Descriptor, converter: Converter, implied: Any) -> str:
    made = json.dumps([converter.settings, implied], sort_keys=True)
    return f"{layer.digest[7:]}-{hashlib.sha256(made.encode()).hexdigest()[:12]}"


def _plain(entries: Mapping[str, Directory | None]) -> dict[str, Any]:
    return {path: asdict(each) if each else None for path, each in entries.items()}


def _entries(plain: Mapping[str, Any]) -> dict[str, Directory | None]:
    return {
        path: None
        if each is None
        else Directory(**{**each, "xattrs": tuple((k, v) for k, v in each["xattrs"])})
        for path, each in plain.items()
    }


def attach(store: Store, converted: Converted) -> bool:
    """Keep a lazy form beside its image; return whether that changed anything.

    A trace that was recorded of the same form stays.
    """
    artifact = converted.artifact
    with contextlib.suppress(FleetfootError):  # what is not usable is replaced
        found = artifact_of(store, artifact.subject.digest)
        if found and found.untraced() == artifact:
            return False
    store.attach(artifact, converted.blobs)
    return True


def attach_traced(store: Store, found: Artifact, recorded: bytes) -> bool:
    """Keep a trace with the lazy form of an image, and the blocks that it names as packs.

    Returns:
        Whether that changed anything.
    """
    named = trace.parse(recorded)
    with tempfile.TemporaryDirectory() as folder:
        files, packs = dict[str, Path](), dict[str, Descriptor]()
        for number, lazy in enumerate(found.layers):
            file = Path(folder) / str(number)
            pack = _packed(store, lazy, named.get(lazy.name, []), file)
            if pack.size:
                packs[lazy.layer], files[pack.digest] = pack, file
        traced = found.traced(recorded, packs)
        if traced == found or not traced.trace:
            return False
        files[traced.trace.digest] = Path(folder) / "trace.json"
        files[traced.trace.digest].write_bytes(recorded)
        store.attach(traced, files)
    return True


def _packed(store: Store, lazy: LazyLayer, runs: Sequence[range], target: Path) -> Descriptor:
    """Write blocks of a sector image one after the other, verified."""
    table = lazy.table_of(store.blob(lazy.table.digest))
    whole, size = hashlib.sha256(), 0
    with target.open("wb") as stream:
        for run in table.within(runs):
            offset, count = table.place_of(run)
            data = store.piece(lazy.image.digest, offset, count)
            if table.unpacked(run, data)[1]:
                raise FleetfootError(
                    f"the sector image of {lazy.layer} is not what its table says",
                    "its trace is not kept",
                    "convert the image again (`fleetfoot lazy convert`)",
                )
            stream.write(data)
            whole.update(data)
            size += count
    return Descriptor.of_pack(f"sha256:{whole.hexdigest()}", size)


def wrong_packs(store: Store, found: Artifact) -> Iterator[str]:
    """Compare packs with what they stand for; yield what is wrong, a line each."""
    layers = {each.layer: each for each in found.layers}
    for layer, pack in found.packs.items():
        try:
            yield from _wrong_pack(store, found, layers.get(layer), pack)
        except FleetfootError as error:
            yield f"{layer}: its pack cannot be compared: {error}"


def _wrong_pack(
    store: Store, found: Artifact, lazy: LazyLayer | None, pack: Descriptor
) -> Iterator[str]:
    named = trace.parse(store.blob(found.trace.digest)) if found.trace else {}
    if lazy is None:
        yield "there is a pack of a layer without a lazy form"
        return
    with tempfile.TemporaryDirectory() as folder:
        if _packed(store, lazy, named.get(lazy.name, []), Path(folder) / "pack") != pack:
            yield f"{lazy.layer}: its pack has other blocks than the trace names"
    whole = hashlib.sha256()
    with store.open(pack.digest) as stream:
        while piece := stream.read(_PIECE):
            whole.update(piece)
    if f"sha256:{whole.hexdigest()}" != pack.digest:
        yield f"{lazy.layer}: its pack is damaged"


def forget_trace(store: Store, found: Artifact) -> bool:
    """Keep the lazy form of an image without its trace; return whether it had one.

    Raises:
        FleetfootError: The store keeps the one with the trace, too, and it is still found.
    """
    if found.trace is None:
        return False
    store.attach(found.untraced(), {})
    left = artifact_of(store, found.subject.digest)
    if left and left.trace:
        raise FleetfootError(
            f"{store} does not remove the lazy form that has the trace",
            "nodes go on fetching ahead by it",
            f"have it removed there: {left.descriptor.digest}",
        )
    return True
