"""The service that makes images lazy when they are pushed: `python3 -m fleetfoot.lazyfs.pushed`.

Runs beside the registry, which tells it of each push (notifications of Debian's docker-registry, or
of any other that sends the same events). What it was not told of, for one of them was away, it
finds by looking through the registry's tags, when it starts and each hour. What has a lazy form is
left as it is.

Whoever may push says what it reads: an image that cannot be converted is refused once, and none may
keep others from their turn.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fleetfoot.errors import FleetfootError
from fleetfoot.lazyfs.artifact import Descriptor, layers_of
from fleetfoot.lazyfs.convert import Converter, attach, convert, versions
from fleetfoot.lazyfs.distribution import (
    INDEXES,
    MANIFESTS,
    AbsentError,
    Access,
    Repository,
    UnreachableError,
    manifests_of,
    repositories,
)
from fleetfoot.lazyfs.stores import Remote, artifact_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Queue", "Service", "Wanted", "images_of", "main", "server", "trim", "wanted_of"]

_FIRST_PAUSE, _LONGEST_PAUSE = 30.0, 3600.0  # seconds until a push that failed is tried again
_LOOK = 3600.0  # seconds between two looks through the registry
_ATTEMPTS = 3  # at an image with which the process ended
_LARGEST_EVENTS = 4 << 20  # bytes
_SHARE = 4  # a layer may take this part of the free disk
_STANDS_IN = re.compile(r"sha256-[0-9a-f]{64}")  # tag in the place of the referrers API
_IMAGES = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
_ARCHIVES = re.compile(r".*[.+]tar([.+](gzip|zstd))?")  # what builders attach besides has others


@dataclass(frozen=True)
class Wanted:
    """A manifest or an index that was pushed.

    Attributes:
        repository: Name of the repository.
        digest: Its digest; a tag where the registry was only looked through.
    """

    repository: str
    digest: str


class Queue:
    """What is to be looked at, each once; what failed comes again, later each time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._changed = clock, threading.Condition()
        self._due: dict[Wanted, tuple[int, float]] = {}
        self._failed: dict[Wanted, int] = {}

    def add(self, wanted: Wanted, *, behind: bool = False) -> None:
        """Have it looked at now, or behind all that is not."""
        with self._changed:
            rank, _ = self._due.get(wanted, (1, 0.0))
            self._due[wanted] = (min(rank, int(behind)), self._clock())
            self._changed.notify()

    def next(self) -> Wanted:
        """Return what is due, as soon as something is."""
        with self._changed:
            while True:
                now = self._clock()
                ready = [wanted for wanted, (_, due) in self._due.items() if due <= now]
                if ready:
                    first = min(ready, key=self._due.__getitem__)
                    del self._due[first]
                    return first
                soonest = min((due for _, due in self._due.values()), default=None)
                self._changed.wait(None if soonest is None else soonest - now)

    def done(self, wanted: Wanted) -> None:
        """Forget that it failed."""
        with self._changed:
            self._failed.pop(wanted, None)

    def again(self, wanted: Wanted) -> float:
        """Have what failed looked at later; return in how many seconds."""
        with self._changed:
            self._failed[wanted] = failed = self._failed.get(wanted, 0) + 1
            pause = min(_FIRST_PAUSE * 2.0 ** min(failed - 1, 10), _LONGEST_PAUSE)
            self._due.setdefault(wanted, (1, self._clock() + pause))
            return pause


def wanted_of(events: bytes) -> list[Wanted]:
    """Read a registry's notification: manifests that were pushed.

    Raises:
        ValueError: It is none.
    """
    try:
        targets = [each["target"] for each in json.loads(events)["events"] if _pushed(each)]
        return [Wanted(str(each["repository"]), str(each["digest"])) for each in targets]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no notification of a registry: {error!r}") from error


def _pushed(event: Any) -> bool:
    return event["action"] == "push" and event["target"].get("mediaType") in MANIFESTS


@dataclass
class Service:
    """What converts.

    Attributes:
        access: How the registry is reached.
        converter: What converts a layer.
        cache: Folder for converted layers, and for what is being tried.
        most: Bytes of converted layers that are kept.
        queue: What is to be looked at.
        log: Takes a line for the journal.
        refused: Digests of images that cannot be converted.
    """

    access: Access
    converter: Converter
    cache: Path
    most: int
    queue: Queue
    log: Callable[[str], None]
    refused: set[str] = field(default_factory=set)

    def begin(self) -> None:
        """Remove what a process left that was ended; what ended several is refused this time."""
        for left in (self.cache / "layers").glob(".*-*"):
            shutil.rmtree(left)
        tried = self._tried()
        for subject, attempts in tried.items():
            if attempts >= _ATTEMPTS:
                self.refused.add(subject)
                self.log(f"{subject} is left as it is: {attempts} times this ended with it")
        self._keep({each: n for each, n in tried.items() if each not in self.refused})

    def work(self) -> None:
        """Look at what is due next; return when that is done."""
        wanted = self.queue.next()
        try:
            whole = self._looked_at(wanted)
        except AbsentError as gone:  # removed meanwhile
            self.log(str(gone))
            whole = True
        except Exception as failed:  # whatever was pushed: the next must not wait for it
            self.log(f"{wanted.repository}@{wanted.digest}: {type(failed).__name__}: {failed}")
            whole = not isinstance(failed, (UnreachableError, OSError))
        if whole:
            self.queue.done(wanted)
        else:
            pause = self.queue.again(wanted)
            self.log(f"{wanted.repository}@{wanted.digest} is tried again in {pause:.0f} s")

    def _looked_at(self, wanted: Wanted) -> bool:
        """Convert what is no lazy image yet; return False where another try may help."""
        store, whole = Remote(Repository(self.access, wanted.repository)), True
        for manifest, kind in images_of(store, wanted.digest):
            subject = Descriptor.of(kind, manifest).digest
            if subject in self.refused or _is_lazy(store, subject, manifest):
                continue
            try:
                self._converted(store, manifest, kind, subject)
            except (UnreachableError, OSError) as failed:
                self.log(f"{store}@{subject}: {failed}")
                whole = False
            except Exception as failed:
                self.log(f"{store}@{subject}: {type(failed).__name__}: {failed}")
                if isinstance(failed.__cause__, OSError):  # the disk is full
                    whole = False
                else:
                    self.refused.add(subject)
        return whole

    def _converted(self, store: Remote, manifest: bytes, kind: str, subject: str) -> None:
        self.log(f"{store}@{subject}: making it lazy")
        tried = self._tried()
        self._keep(tried | {subject: tried.get(subject, 0) + 1})
        try:
            free = shutil.disk_usage(self.cache).free // _SHARE
            if any(layer.size > free for layer in layers_of(manifest)):
                raise OSError(errno.ENOSPC, "a layer is larger than there is room for")
            made = convert(
                store,
                manifest,
                kind,
                converter=self.converter,
                cache=self.cache,
                progress=self.log,
                largest=free,
            )
            try:
                attach(store, made)
            except FleetfootError as refusal:  # the registry is read-only while it collects
                raise UnreachableError(str(refusal)) from refusal
        finally:
            trim(self.cache / "layers", self.most)
            tried.pop(subject, None)
            self._keep(tried)

    def _tried(self) -> dict[str, int]:
        try:
            said = json.loads((self.cache / "trying").read_text())
            return {str(subject): int(n) for subject, n in said.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}

    def _keep(self, tried: dict[str, int]) -> None:
        (self.cache / "trying").write_text(json.dumps(tried))

    def look_through(self) -> None:
        """Find what it was not told of, now and then; does not return."""
        pause = 1.0
        while True:
            try:
                for wanted in _everything(self.access):
                    self.queue.add(wanted, behind=True)
            except (FleetfootError, OSError) as away:  # it is started with this
                self.log(f"the registry was not looked through: {away}; again in {pause:.0f} s")
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                time.sleep(_LOOK)


def images_of(store: Remote, digest: str) -> list[tuple[bytes, str]]:
    """Return the manifests of images, and their media types: of one, or of all in an index.

    Args:
        store: The repository.
        digest: Digest or tag of a manifest or an index; of what is no image, nothing is returned.

    Raises:
        AbsentError: There is none.
    """
    manifest, kind = store.manifest(digest)
    found = [(manifest, kind)]
    if kind in INDEXES:  # of images: nobody makes indexes of indexes
        found = []
        for each in manifests_of(manifest):
            with contextlib.suppress(AbsentError):  # an index may name what others have
                found.append(store.manifest(Descriptor.parse(each).digest))
    return [(each, its_kind) for each, its_kind in found if _is_image(each)]


def _is_image(manifest: bytes) -> bool:
    plain = json.loads(manifest)
    kind = plain.get("config", {}).get("mediaType")
    layers = plain.get("layers") or ()
    archives = all(_ARCHIVES.fullmatch(layer.get("mediaType", "")) for layer in layers)
    return kind in _IMAGES and bool(layers) and archives and not plain.get("subject")


def _is_lazy(store: Remote, subject: str, manifest: bytes) -> bool:
    try:
        found = artifact_of(store, subject)
    except UnreachableError:
        raise
    except FleetfootError:  # what is not usable is replaced
        return False
    return found is not None and found.covers([layer.digest for layer in layers_of(manifest)])


def trim(layers: Path, most: int) -> None:
    """Remove the longest converted layers ago, until the others take at most `most` bytes."""
    sizes = {
        folder: sum(file.stat().st_size for file in folder.iterdir())
        for folder in layers.glob("[!.]*")
    }
    left = sum(sizes.values())
    for folder in sorted(sizes, key=lambda folder: folder.stat().st_mtime):
        if left <= most:
            return
        shutil.rmtree(folder)
        (layers / f".{folder.name.partition('-')[0]}.lock").unlink(missing_ok=True)
        left -= sizes[folder]


def server(
    address: tuple[str, int], queue: Queue, log: Callable[[str], object]
) -> http.server.HTTPServer:
    """Return what takes a registry's notifications.

    Whatever comes is taken: a registry sends nothing else until it is.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 30

        def do_POST(self) -> None:
            try:
                length = int(self.headers.get("Content-Length") or 0)
                if length > _LARGEST_EVENTS:
                    raise ValueError(f"{length} bytes at once")
                for each in wanted_of(self.rfile.read(length)):
                    queue.add(each)
            except (ValueError, RecursionError) as error:
                log(f"a notification was not understood: {error}")
            self.send_response(http.HTTPStatus.NO_CONTENT)
            self.end_headers()

        def log_request(self, *_: object) -> None:
            """Say nothing of what went well."""

    return http.server.ThreadingHTTPServer(address, Handler)


def main() -> NoReturn:
    """Serve until the process is ended."""
    options = _options()
    os.umask(0o077)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # what is being tried did not end it
    queue = Queue()
    service = Service(
        Access(options.registry),
        Converter(None, versions(_packages())),
        options.cache,
        options.cache_mib << 20,
        queue,
        _log,
    )
    service.begin()
    taking = server(("127.0.0.1", options.port), queue, _log)
    for work in (taking.serve_forever, service.look_through):
        threading.Thread(target=work, daemon=True).start()
    while True:
        service.work()


def _everything(access: Access) -> Iterator[Wanted]:
    for name in repositories(access):
        for tag in Repository(access, name).tags():
            if not _STANDS_IN.fullmatch(tag):
                yield Wanted(name, tag)


def _packages() -> dict[str, str]:
    argv = ["dpkg-query", "--show", "--showformat=${Package}\t${Version}\n"]
    said = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    return dict(line.split("\t", 1) for line in said.splitlines())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fleetfoot-lazy-pushed", description=__doc__)
    parser.add_argument("--registry", default="http://127.0.0.1:5001", help="Its address.")
    parser.add_argument("--port", type=int, default=5002, help="Where notifications come to.")
    parser.add_argument("--cache", type=Path, required=True, help="For converted layers.")
    parser.add_argument("--cache-mib", type=int, default=4096, help="Most that these take, in MiB.")
    return parser.parse_args()


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
