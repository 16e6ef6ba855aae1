"""All layers of a node: those that are read, and what the background does for them."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fleetfoot.errors import FleetfootError
from fleetfoot.lazyfs.distribution import Access, Repository
from fleetfoot.lazyfs.node import loops, registries
from fleetfoot.lazyfs.node.layer import Counts, Layer
from fleetfoot.lazyfs.node.mounts import mounted
from fleetfoot.lazyfs.node.store import Cache, Folder, Place, keep

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fleetfoot.lazyfs.table import Table

__all__ = ["Server"]

_PAUSE = 1.0  # seconds between two looks at what is to be done
_AHEAD = 2  # requests at once that fetch ahead, for the whole node
_PIECE = 16  # blocks that come at once in the background, and of a pack: 1 MiB, unpacked
_SHORTEST = 8  # a packed block counts as one of at least this part of it: it is written, too
_QUIET = 5.0  # seconds without a block that somebody waited for, until the background goes on
#: Seconds from a layer's first use in which a start may still compute between its reads, as long as
#: this much of one processor is busy, this process aside: it is completed after that.
_STARTING, _COMPUTES = 120.0, 0.6
_STAT = Path("/proc/stat")
_STARVED = 300.0  # seconds after which it does a little in any case
#: Seconds from the beginning of fetching ahead until what came is told, and then twice as many each
#: time: what is done then takes the processor from a start, which is over by the first of them.
_FIRST_TOLD = 10.0
_HELD = 5.0  # seconds of a read's waiting from which on nothing is told: see `_tell_ahead`
_IDLE = 60.0  # seconds without a read until a layer may be evicted
_REST = 60.0  # seconds that a layer is left alone which could not be completed
_TIMEOUT = 10.0  # seconds without a byte until a registry is asked again


@dataclass
class _Ahead:
    """What is fetched ahead of a layer.

    Attributes:
        runs: Blocks of its trace, in the order in which a start reads them.
        pack: Digest of the blob that has them one after the other; nothing without one that does.
        todo: Those that nobody has begun with, as they are fetched, and where they are in it.
        threads: How many fetch them still.
        begun: When they began.
        told_after: Seconds from then on until what came is told next.
    """

    runs: list[range]
    pack: str
    todo: Iterator[tuple[list[range], int]]
    threads: int = _AHEAD
    begun: float = field(default_factory=time.monotonic)
    told_after: float = _FIRST_TOLD


@dataclass
class Server:
    """The layers that are read, and what the background does for them.

    Attributes:
        root: The node's folder.
        certs: Folder with containerd's descriptions of registries.
        deadline: Seconds for which a read waits for its registry.
        rate: Bytes a second that the background fetches; 0 turns it off.
        watermark: Part of the disk (0 to 1) above which the background fetches nothing: what nobody
            has read yet must not make the kubelet remove images or pods.
        evict: Part of the disk above which layers are evicted that nobody reads: before the kubelet
            evicts pods for it.
        stats: File for what happened; none is written where it is None. Which blocks were read of a
            layer stands beside it, in `touched-<name>.json`.
    """

    root: Path = Path("/var/lib/fleetfoot-lazy")
    certs: Path = Path("/etc/containerd/certs.d")
    deadline: float = 300.0
    rate: float = 16 * 2**20
    watermark: float = 0.8
    evict: float = 0.9
    stats: Path | None = None
    counts: Counts = field(default_factory=Counts)
    _layers: dict[str, Layer] = field(default_factory=dict)
    _repositories: dict[Place, tuple[object, Repository]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ahead: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(_AHEAD))
    _aheads: dict[str, _Ahead] = field(default_factory=dict)
    _resting: dict[str, float] = field(default_factory=dict)
    _told: dict[str, int] = field(default_factory=dict)
    _misses: float = 0
    _missed_at: float = -_QUIET
    _spent: tuple[float, float] = (0.0, 0.0)  # seconds of processors until when
    _computes: bool = False
    _worked_at: float = field(default_factory=time.monotonic)

    def layer(self, name: str) -> Layer:
        """Return a layer by its folder's name.

        Raises:
            FleetfootError: There is none of that name, or it cannot be used.
        """
        with self._lock:
            known = self._layers.get(name)
            if known is not None and known.cache.is_current:
                return known
            folder = Folder.of(self.root, name)
            table = folder.table()
            # One that was removed and came again is another: who still reads the former keeps it.
            self._layers[name] = layer = Layer(
                table,
                Cache(folder, table),
                lambda: self._origins(folder),
                counts=self.counts,
                deadline=self.deadline,
                log=_log,
            )
            named, pack = folder.trace()
            runs = table.within(named)
            # Reads of these are not seen here. In the order of the trace, where it names them.
            told = {block for run in folder.ahead() for block in run}
            layer.note(block for run in runs for block in run if block in told)
            layer.note(sorted(told))
            if runs:
                todo = _parts(table, runs) if pack else (([run], 0) for run in runs)
                self._aheads[name] = ahead = _Ahead(runs, pack, todo)
        for _ in range(_AHEAD if runs else 0):
            threading.Thread(target=self._fetch_ahead, args=(layer, ahead), daemon=True).start()
        return layer

    def names(self) -> list[str]:
        """Return what can be served."""
        return [folder.name for folder in Folder.all(self.root)]

    def work(self) -> None:
        """Complete layers in the background, and say what happened; does not return."""
        registries.warm(self.certs)
        threading.Thread(target=self._complete_all, daemon=True).start()
        while True:
            time.sleep(_PAUSE)
            # Each by itself: what frees a full disk must not wait for what needs room there.
            for do in (self._forget, self._make_room, self._tell_ahead, self.report):
                try:
                    do()
                except Exception as error:  # nothing may end what all reads rely on
                    _log(f"in the background: {type(error).__name__}: {error}")

    def report(self) -> None:
        """Write what happened so far."""
        if self.stats is None:
            return
        described = {}
        for name, layer in self._known().items():
            described[name] = {
                "blocks": layer.table.block_count,
                "present": layer.cache.count,
                "touched": len(layer.touched),
                "bytes": layer.table.length,
            }
            if self._told.get(name) != len(layer.touched):
                self._told[name] = len(layer.touched)
                read = json.dumps(layer.touched).encode()
                keep(self.stats.with_name(f"touched-{name}.json"), read)
        keep(self.stats, json.dumps({"counts": self.counts, "layers": described}).encode())

    def _known(self) -> dict[str, Layer]:
        with self._lock:
            return dict(self._layers)

    def _forget(self) -> None:
        """Let go what was removed: its files take room for as long as they are open."""
        for name, layer in self._known().items():
            if not layer.cache.is_current:
                with self._lock:
                    if self._layers.get(name) is layer:
                        del self._layers[name]
                        self._aheads.pop(name, None)
                self._told.pop(name, None)
                if self.stats:
                    self.stats.with_name(f"touched-{name}.json").unlink(missing_ok=True)

    def _is_quiet(self) -> bool:
        """Whether nobody waits for a registry: a start comes before what nobody asked for."""
        now, misses = time.monotonic(), self.counts["blocks_missed"] + self.counts["blocks_ahead"]
        (before, since), self._spent = self._spent, (_spent_by_others(), now)
        self._computes = self._spent[0] - before > _COMPUTES * (now - since)
        if misses != self._misses:
            self._misses, self._missed_at = misses, now
        if now - self._missed_at < _QUIET and now - self._worked_at < _STARVED:
            return False
        self._worked_at = now
        return True

    def _has_room(self) -> bool:
        return not _is_fuller(self.root, self.watermark)

    def _make_room(self) -> None:
        """Evict what was not read for longest, while the disk is too full: it can come again."""
        for name, layer in sorted(self._known().items(), key=lambda each: each[1].read_at):
            idle = time.monotonic() - layer.read_at > _IDLE
            if not _is_fuller(self.root, self.evict) or not idle:
                return
            folder = Folder.of(self.root, name)
            with contextlib.suppress(FileNotFoundError), folder.alone():
                # What is read from its file has nobody who would fetch it again.
                if layer.cache.count and not _is_read_past_us(folder):
                    folder.unmark()
                    gone = layer.cache.evict()
                    self.counts.add("blocks_evicted", gone)
                    _log(f"{name} leaves the disk, which is full: {gone} blocks")

    def _complete_all(self) -> None:
        while True:
            try:
                may = self.rate and self._is_quiet() and self._has_room()
                worked = bool(may) and self._complete_something()
            except Exception as error:
                _log(f"in the background: {type(error).__name__}: {error}")
                worked = False
            if not worked:
                time.sleep(_PAUSE)

    def _complete_something(self) -> bool:
        """Work on one layer for a while; return False where there is nothing to be done."""
        now = time.monotonic()
        for name, layer in self._known().items():
            folder = Folder.of(self.root, name)
            is_starting = self._computes and now - layer.opened_at < _STARTING
            if is_starting or self._resting.get(name, 0) > now or folder.is_complete:
                continue
            generation = layer.cache.generation
            if not self._complete(layer):
                self._resting[name] = time.monotonic() + _REST
            elif next(layer.missing(), None) is None:
                with contextlib.suppress(FileNotFoundError), folder.alone():
                    if layer.cache.generation == generation and layer.cache.is_current:
                        folder.mark_complete()
                        _log(f"{name} is complete")
            return True
        return False

    def _complete(self, layer: Layer) -> bool:
        """Fetch some of what is missing; return False where that makes no sense for now."""
        begun, fetched = time.monotonic(), 0
        while time.monotonic() - begun < _PAUSE:
            try:
                if not (run := _run(layer)):
                    return True
                layer.fetch(run)
            except OSError as error:
                _log(f"in the background: {error}")
                return False
            if not layer.cache.has(run.start):  # the disk is full
                return False
            size = layer.table.packed_size(run)
            fetched += max(size, len(run) * layer.table.block // _SHORTEST)
            self.counts.add("bytes_background", size)
            time.sleep(max(fetched / self.rate - (time.monotonic() - begun), 0))
        return True

    def _fetch_ahead(self, layer: Layer, ahead: _Ahead) -> None:
        """Fetch what a start is known to read; several threads share what is to be done."""
        try:
            while True:
                with self._lock:
                    part = next(ahead.todo, None)
                if part is None:
                    return
                (runs, offset), pack = part, ahead.pack
                with self._ahead:
                    if not pack or not layer.fetch_packed(runs, pack, offset):
                        ahead.pack = ""
                        for run in runs:
                            layer.fetch(run)
                self.counts.add("blocks_ahead", sum(len(run) for run in runs))
        except OSError as error:
            _log(f"fetching ahead: {error}")
        finally:
            with self._lock:
                ahead.threads -= 1

    def _tell_ahead(self) -> None:
        """Say which blocks that were fetched ahead can be read from the file, now and then.

        Whoever is told changes what the layer is read from, and for that waits until reads in
        flight are answered, while other reads wait for the change. So it is told a few times only,
        and not while one of them waits for its registry already.
        """
        now = time.monotonic()
        for name, layer in self._known().items():
            with self._lock:
                ahead = self._aheads.get(name)
            if ahead is None or layer.waits > _HELD:
                continue
            is_over = not ahead.threads
            if now < ahead.begun + ahead.told_after:
                continue
            while ahead.begun + ahead.told_after <= now:
                ahead.told_after *= 2
            try:
                self._tell_what_came(Folder.of(self.root, name), layer, ahead)
            except OSError as error:  # a full disk: they are read by the network then
                _log(f"{name}: what came ahead is not told: {error}")
            if is_over:
                with self._lock:
                    self._aheads.pop(name, None)

    def _tell_what_came(self, folder: Folder, layer: Layer, ahead: _Ahead) -> None:
        generation = layer.cache.generation
        came = [block for run in ahead.runs for block in run if layer.cache.has(block)]
        with contextlib.suppress(FileNotFoundError), folder.alone():
            told = {block for run in folder.ahead() for block in run}
            if folder.is_complete or told.issuperset(came):
                return
            if layer.cache.generation == generation and layer.cache.is_current:
                folder.set_ahead(_joined(told.union(came)))
                layer.note(came)  # a trace that is recorded anew must not lose them

    def _origins(self, folder: Folder) -> list[Repository]:
        found = []
        for place in folder.places():
            try:
                found.append(self._repository(place))
            except (OSError, FleetfootError) as error:  # others may have it, too
                _log(f"{place.host}: {error}")
        return found

    def _repository(self, place: Place) -> Repository:
        described = self.certs / place.host
        stamp = tuple((path.name, path.stat().st_mtime_ns) for path in _files(described))
        with self._lock:
            known, repository = self._repositories.get(place, (None, None))
        if repository is None or known != stamp:
            access = Access.of_containerd(self.certs, place.host)
            repository = Repository(access, place.name, timeout=_TIMEOUT)
            with self._lock:
                self._repositories[place] = (stamp, repository)
        return repository


def _is_read_past_us(folder: Folder) -> bool:
    """Whether the kernel reads a layer's file itself: as a file system, or parts of it."""
    return str(folder.data) in mounted().values() or loops.reads(folder.data)


def _parts(table: Table, runs: Sequence[range]) -> Iterator[tuple[list[range], int]]:
    """Divide what a pack has into parts of some blocks: their runs, and where each part begins."""
    part, begin, offset = list[range](), 0, 0
    for run in runs:
        for start in range(run.start, run.stop, _PIECE):
            part.append(piece := range(start, min(start + _PIECE, run.stop)))
            offset += table.packed_size(piece)
            if sum(map(len, part)) >= _PIECE:
                yield part, begin
                part, begin = [], offset
    if part:
        yield part, begin


def _joined(blocks: set[int]) -> list[range]:
    """Return blocks as runs, ascending."""
    runs: list[range] = []
    for block in sorted(blocks):
        if runs and runs[-1].stop == block:
            runs[-1] = range(runs[-1].start, block + 1)
        else:
            runs.append(range(block, block + 1))
    return runs


def _spent_by_others() -> float:
    """Return the time that processors spent on anything but this process, in seconds."""
    spent = [int(word) for word in _STAT.read_text().split("\n", 1)[0].split()[1:8]]
    idle = spent[3] + spent[4]  # proc_stat(5)
    return (sum(spent) - idle) / os.sysconf("SC_CLK_TCK") - time.process_time()


def _is_fuller(folder: Path, part: float) -> bool:
    disk = os.statvfs(folder)
    return disk.f_bavail <= disk.f_blocks * (1 - part)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _run(layer: Layer) -> range:
    """Return the first blocks that are missing, as one run."""
    first = next(layer.missing(), None)
    if first is None:
        return range(0)
    last = first + 1
    while last < min(first + _PIECE, layer.table.block_count) and not layer.cache.has(last):
        last += 1
    return range(first, last)


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
