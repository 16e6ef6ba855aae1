"""containerd's snapshots service over gRPC: lazy layers and ordinary ones in one tree."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError

from fleetfoot.lazyfs.node import api
from fleetfoot.lazyfs.node.api import ACTIVE, VIEW, Empty, message
from fleetfoot.lazyfs.node.devices import unmounted
from fleetfoot.lazyfs.node.mounts import mounted
from fleetfoot.lazyfs.node.snapshots import Snapshot, SnapshotError
from fleetfoot.lazyfs.node.store import Folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor
    from pathlib import Path

    from grpclib.server import Stream

    from fleetfoot.lazyfs.node.devices import Devices
    from fleetfoot.lazyfs.node.images import Images
    from fleetfoot.lazyfs.node.snapshots import Snapshots

__all__ = ["Service"]

_TARGET = "containerd.io/snapshot.ref"
_REFERENCE = "containerd.io/snapshot/cri.image-ref"
_MANIFEST = "containerd.io/snapshot/cri.manifest-digest"
_LAYER = "containerd.io/snapshot/cri.layer-digest"
_LISTED_AT_ONCE = 100
_MOUNTS_AT_ONCE = 64
_PATIENCE = 60.0  # seconds for which containerd, and its garbage collection, wait for a lazy layer


@dataclass
class _Attempt:
    """To mount a layer lazily. Whoever gives it up or ends it first has the last word."""

    over: bool = False
    made: Snapshot | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Service:
    """The service, as containerd calls it.

    Args:
        root: The node's folder.
        snapshots: What is known of snapshots.
        images: Whether images are mounted lazily.
        devices: Where lazy layers are mounted from.
        log: Takes a line for the journal.
        calls: What calls are answered in, for they wait for mounts.
    """

    def __init__(
        self,
        root: Path,
        snapshots: Snapshots,
        images: Images,
        devices: Devices,
        log: Callable[[str], object],
        *,
        calls: Executor,
    ) -> None:
        self._root, self._snapshots, self._images = root, snapshots, images
        self._calls = calls
        self._devices, self._log = devices, log
        self._lock = threading.Lock()
        self._mounts_of_layers = ThreadPoolExecutor(_MOUNTS_AT_ONCE)

    def __mapping__(self) -> dict[str, Handler]:
        """Return what answers gRPC calls: grpclib's name for it."""
        methods = {}
        for name, (request, response, many) in api.METHODS.items():
            methods[f"/{api.SERVICE}/{name}"] = Handler(
                self._handler(getattr(self, name), many=many),
                Cardinality.UNARY_STREAM if many else Cardinality.UNARY_UNARY,
                message(request),
                message(response) if response else Empty,
            )
        return methods

    def restore(self) -> None:
        """Mount again what was mounted before the machine was restarted."""
        for snapshot in self._snapshots.all():
            if snapshot.layer:
                try:
                    self._mounted(snapshot)
                except SnapshotError as error:
                    self._log(str(error))

    # The methods of the service, by their names in it.

    def Prepare(self, request: Any) -> Any:  # noqa: N802
        """Make a snapshot that can be written, or one with all of a lazy layer in it."""
        made = self._lazily(request) or self._added(request, ACTIVE)
        return message("PrepareSnapshotResponse")(mounts=self._mounts(made))

    def View(self, request: Any) -> Any:  # noqa: N802
        """Make a snapshot that can be read."""
        made = self._added(request, VIEW)
        return message("ViewSnapshotResponse")(mounts=self._mounts(made))

    def Mounts(self, request: Any) -> Any:  # noqa: N802
        """Return what is mounted to get at a snapshot."""
        known = self._snapshots.get(request.key)
        self._make_ready(known)
        return message("MountsResponse")(mounts=self._mounts(known))

    def Commit(self, request: Any) -> Any:  # noqa: N802
        """Make a snapshot one that others can stand on."""
        self._snapshots.commit(request.name, request.key, dict(request.labels), request.parent)
        return Empty()

    def Remove(self, request: Any) -> Any:  # noqa: N802
        """Forget a snapshot."""
        gone = self._snapshots.remove(request.key)
        self._dropped(self._snapshots.folder(gone).parent)
        return Empty()

    def Stat(self, request: Any) -> Any:  # noqa: N802
        """Return what is known of a snapshot."""
        known = self._snapshots.get(request.key)
        return message("StatSnapshotResponse")(info=_info(known))

    def Update(self, request: Any) -> Any:  # noqa: N802
        """Change labels of a snapshot: all of them, or those that the mask names."""
        known = self._snapshots.get(request.info.name)
        paths = list(request.update_mask.paths)
        labels: dict[str, str] | None = dict(request.info.labels)
        if paths and "labels" not in paths:
            changed = dict(known.labels)
            for path in paths:
                name = path.removeprefix("labels.")
                if name == path:
                    raise SnapshotError("INVALID_ARGUMENT", f"{path} cannot be changed")
                if name in request.info.labels:
                    changed[name] = request.info.labels[name]
                else:
                    changed.pop(name, None)
            labels = changed
        kept = self._snapshots.update(request.info.name, labels)
        return message("UpdateSnapshotResponse")(info=_info(kept))

    def List(self, _request: Any) -> Iterator[Any]:  # noqa: N802
        """Return what is known of all snapshots."""
        # Filters are containerd's own business: it looks at what comes in any case.
        known = [_info(each) for each in self._snapshots.all()]
        for start in range(0, len(known), _LISTED_AT_ONCE):
            yield message("ListSnapshotsResponse")(info=known[start : start + _LISTED_AT_ONCE])

    def Usage(self, request: Any) -> Any:  # noqa: N802
        """Return what a snapshot takes on disk: of a lazy one, what was fetched so far."""
        known = self._snapshots.get(request.key)
        if known.layer:
            data = Folder.of(self._root, known.layer).data
            size, inodes = (data.stat().st_blocks * 512 if data.exists() else 0), 1
        else:
            size, inodes = self._snapshots.usage(known)
        return message("UsageResponse")(size=size, inodes=inodes)

    def Cleanup(self, _request: Any) -> Any:  # noqa: N802
        """Remove what belongs to no snapshot."""
        with self._lock:
            for folder in self._snapshots.orphans():
                self._dropped(folder)
            used = {each.layer for each in self._snapshots.all()}
            for layer in Folder.all(self._root):
                # What a pull has just prepared has no snapshot yet.
                if layer.name in used or self._images.is_wanted(layer.name):
                    continue
                if self._devices.release(layer.name):
                    layer.remove()
        return Empty()

    # How

    def _added(self, request: Any, kind: int, *, layer: str = "") -> Snapshot:
        if request.parent:  # what it stands on comes first: a failure leaves nothing
            self._make_ready(self._snapshots.get(request.parent))
        labels = dict(request.labels)
        return self._snapshots.add(request.key, request.parent, kind, labels, layer=layer)

    def _lazily(self, request: Any) -> Snapshot | None:
        """Mount a layer lazily where containerd would unpack it.

        It takes a read-only mount for a layer whose content is there, and only commits that.
        """
        labels = dict(request.labels)
        named = [labels.get(name, "") for name in (_REFERENCE, _MANIFEST, _LAYER)]
        if _TARGET not in labels or not all(named):
            return None
        attempt = _Attempt()
        trying = self._mounts_of_layers.submit(self._tried, request, named, attempt)
        try:
            return trying.result(_PATIENCE)
        except TimeoutError:
            with attempt.lock:
                if attempt.over:  # it has just come
                    return trying.result()
                attempt.over = True
                if attempt.made:
                    self._snapshots.remove(attempt.made.key)
        self._images.give_up(named[1])
        self._log(f"{named[0]} is pulled as ever: a layer was not mounted in {_PATIENCE:.0f} s")
        return None

    def _tried(self, request: Any, named: list[str], attempt: _Attempt) -> Snapshot | None:
        folder = self._images.layer(*named)
        with attempt.lock:
            if folder is None or attempt.over:
                attempt.over = True
                return None
            attempt.made = made = self._added(request, ACTIVE, layer=folder.name)
        try:
            self._mounted(made)
        except SnapshotError as error:
            self._log(f"{named[0]} is pulled as ever: {error}")
            self._images.give_up(named[1])
            mounted = False
        else:
            mounted = True
        with attempt.lock:
            given_up, attempt.over = attempt.over, True
        if mounted and not given_up:
            return made
        if not given_up:
            self._snapshots.remove(made.key)
        self._dropped(self._snapshots.folder(made).parent)
        return None

    def _mounted(self, snapshot: Snapshot) -> None:
        folder = Folder.of(self._root, snapshot.layer)
        try:
            self._devices.mount(folder, self._snapshots.folder(snapshot))
        except OSError as error:
            told = f"snapshot {snapshot.key} is not mounted: {error}"
            raise SnapshotError("UNAVAILABLE", told) from error

    def _make_ready(self, snapshot: Snapshot) -> None:
        # A layer that is not there would be an empty folder, and its files missing without a word.
        there = mounted()
        for each in (snapshot, *self._snapshots.below(snapshot)):
            if each.layer and self._snapshots.folder(each) not in there:
                self._mounted(each)

    def _mounts(self, snapshot: Snapshot) -> list[Any]:
        return [
            message("Mount")(type=each.type, source=each.source, options=each.options)
            for each in self._snapshots.mounts(snapshot)
        ]

    def _dropped(self, folder: Path) -> None:
        if unmounted(folder / "fs"):
            self._snapshots.drop(folder)

    def _handler(
        self, method: Callable[[Any], Any], *, many: bool
    ) -> Callable[[Stream[Any, Any]], Any]:
        def answers(request: Any) -> list[Any]:
            try:
                return list(method(request)) if many else [method(request)]
            except SnapshotError as error:
                raise GRPCError(Status[error.code], str(error)) from error
            except OSError as error:
                raise GRPCError(Status.INTERNAL, str(error)) from error

        async def handler(stream: Stream[Any, Any]) -> None:
            request = await stream.recv_message()
            loop = asyncio.get_running_loop()
            for answer in await loop.run_in_executor(self._calls, answers, request):
                await stream.send_message(answer)

        return handler


def _info(snapshot: Snapshot) -> Any:
    info = message("Info")(
        name=snapshot.key, parent=snapshot.parent, kind=snapshot.kind, labels=snapshot.labels
    )
    for name, seconds in (("created_at", snapshot.created), ("updated_at", snapshot.updated)):
        getattr(info, name).FromNanoseconds(int(seconds * 10**9))
    return info
