"""The service that makes images lazy when they are pushed: `python3 -m fleetfoot.lazyfs.pushed`.

Runs beside the registry, which tells it of each push (notifications of Debian's docker-registry, or
of any other that sends the same events). It looks through the whole registry when it starts, so
nothing is lost while it is away; what has a lazy form is left as it is.
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
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
    manifests_of,
    repositories,
)
from fleetfoot.lazyfs.stores import Remote, artifact_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Queue", "Wanted", "main", "make_lazy", "server", "trim", "wanted_of"]

_FIRST_PAUSE, _LONGEST_PAUSE = 30.0, 3600.0  # seconds until a push that failed is tried again
_LARGEST_EVENTS = 4 << 20  # bytes
_STANDS_IN = re.compile(r"sha256-[0-9a-f]{64}")  # tag in the place of the referrers API
_IMAGES = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)


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
        self._due: dict[Wanted, float] = {}
        self._failed: dict[Wanted, int] = {}

    def add(self, wanted: Wanted) -> None:
        """Have it looked at now."""
        with self._changed:
            self._due[wanted] = self._clock()
            self._changed.notify()

    def next(self) -> Wanted:
        """Return what is due, as soon as something is."""
        with self._changed:
            while True:
                first = min(self._due, key=self._due.__getitem__, default=None)
                pause = self._due[first] - self._clock() if first else None
                if first and pause is not None and pause <= 0:
                    del self._due[first]
                    return first
                self._changed.wait(pause)

    def done(self, wanted: Wanted) -> None:
        """Forget that it failed."""
        with self._changed:
            self._failed.pop(wanted, None)

    def again(self, wanted: Wanted) -> float:
        """Have what failed looked at later; return in how many seconds."""
        with self._changed:
            self._failed[wanted] = failed = self._failed.get(wanted, 0) + 1
            pause = min(_FIRST_PAUSE * 2.0 ** min(failed - 1, 10), _LONGEST_PAUSE)
            self._due.setdefault(wanted, self._clock() + pause)
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


def make_lazy(
    store: Remote,
    digest: str,
    *,
    converter: Converter,
    cache: Path,
    progress: Callable[[str], None],
) -> int:
    """Give an image its lazy form, or all images of an index; return how many were made now.

    Args:
        store: The repository.
        digest: Digest or tag of a manifest or an index; of what is no image, nothing is made.
        converter: What converts.
        cache: Where converted layers are kept.
        progress: Takes one line at a time for a person to follow.

    Raises:
        FleetfootError: One cannot be converted, or the registry refuses.
    """
    count = 0
    for manifest, kind in _images(store, digest):
        subject = Descriptor.of(kind, manifest).digest
        found = artifact_of(store, subject)
        if found and found.covers([layer.digest for layer in layers_of(manifest)]):
            continue
        progress(f"{store}@{subject}: making it lazy")
        made = convert(store, manifest, kind, converter=converter, cache=cache, progress=progress)
        attach(store, made)
        count += 1
    return count


def _images(store: Remote, digest: str) -> Iterator[tuple[bytes, str]]:
    manifest, kind = store.manifest(digest)
    listed = [(manifest, kind)]
    if kind in INDEXES:  # of images: nobody makes indexes of indexes
        listed = [store.manifest(Descriptor.parse(each).digest) for each in manifests_of(manifest)]
    for each, its_kind in listed:
        plain = json.loads(each)
        if plain.get("config", {}).get("mediaType") in _IMAGES and not plain.get("subject"):
            yield each, its_kind


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


def server(address: tuple[str, int], queue: Queue) -> http.server.HTTPServer:
    """Return what takes a registry's notifications."""

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 30

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if not 0 < length <= _LARGEST_EVENTS:
                self.send_error(http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
                return
            try:
                wanted = wanted_of(self.rfile.read(length))
            except ValueError as error:
                self.send_error(http.HTTPStatus.BAD_REQUEST, str(error))
                return
            for each in wanted:
                queue.add(each)
            self.send_response(http.HTTPStatus.NO_CONTENT)
            self.end_headers()

        def log_request(self, *_: object) -> None:
            """Say nothing of what went well."""

    return http.server.ThreadingHTTPServer(address, Handler)


def main() -> NoReturn:
    """Serve until the process is ended."""
    options = _options()
    os.umask(0o077)
    queue, access = Queue(), Access(options.registry)
    converter = Converter(None, versions(_packages()))
    taking = server(("127.0.0.1", options.port), queue)
    threading.Thread(target=taking.serve_forever, daemon=True).start()
    threading.Thread(target=_look_through, args=(access, queue), daemon=True).start()
    while True:
        wanted = queue.next()
        try:
            store = Remote(Repository(access, wanted.repository))
            make_lazy(store, wanted.digest, converter=converter, cache=options.cache, progress=_log)
            trim(options.cache / "layers", options.cache_mib << 20)
        except AbsentError as gone:  # removed meanwhile
            _log(str(gone))
        # Whatever was pushed: the next image must not wait for it.
        except (FleetfootError, OSError, ValueError, TypeError, AttributeError) as failed:
            pause = queue.again(wanted)
            _log(f"{wanted.repository}@{wanted.digest}: {failed}; tried again in {pause:.0f} s")
            continue
        queue.done(wanted)


def _look_through(access: Access, queue: Queue) -> None:
    pause = 1.0
    while True:
        try:
            for wanted in _everything(access):
                queue.add(wanted)
        except (FleetfootError, OSError) as away:  # it is started with this
            _log(f"the registry was not looked through: {away}; tried again in {pause:.0f} s")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            return


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
