"""One layer as it is read: from what is here, else from its registry, verified in both cases.

Several threads read at once. A block is fetched once however many wait for it; neighbours that are
wanted together, or will be, come with one request.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from fleetfoot.errors import FleetfootError
from fleetfoot.lazyfs.distribution import AbsentError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from fleetfoot.lazyfs.node.store import Cache
    from fleetfoot.lazyfs.table import Table

__all__ = ["Counts", "Layer", "Origin"]

_PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0)  # seconds between attempts; the last one again and again
_READ_AHEAD = 16  # blocks beyond what is wanted, when reads follow each other
_AROUND = 4  # blocks that come together in other cases: they take a link no longer than a request
_CAUSES: dict[type[FleetfootError], str] = {
    UnreachableError: "unreachable",
    AbsentError: "absent",
}
_LARGEST_RUN = 64  # blocks that one request fetches: a sector
_ORIGINS = 1.0  # seconds until it is asked again where a layer can be fetched, which reads files


class Origin(Protocol):
    """Where a packed sector image is fetched."""

    def range(self, digest: str, offset: int, count: int) -> bytes:
        """Return bytes of a blob, unverified."""


class Counts(Counter[str]):
    """What happened, by name; the names are those of the metrics, without their prefix."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def add(self, name: str, amount: float = 1) -> None:
        """Count something."""
        with self._lock:
            self[name] += amount  # type: ignore[assignment]  # seconds are fractions


class _Flight:
    """Blocks that are being fetched, and those that wait for them."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.blocks: dict[int, memoryview] = {}


class Layer:
    """A layer that is read.

    Args:
        table: What it must be.
        cache: What is here of it.
        origins: Where the rest is, the preferred one first.
        counts: Where to count what happens.
        deadline: Seconds for which a read waits for its registry before it fails.
        log: Takes a line for the journal.
    """

    def __init__(
        self,
        table: Table,
        cache: Cache,
        origins: Callable[[], Sequence[Origin]],
        *,
        counts: Counts,
        deadline: float,
        log: Callable[[str], object] = print,
    ) -> None:
        self.table, self.cache, self.counts = table, cache, counts
        self._origins, self._deadline, self._log = origins, deadline, log
        self._digest = f"sha256:{table.image.hex()}"
        self._lock = threading.Lock()
        self._flights: dict[int, _Flight] = {}
        self._reading: dict[int, float] = {}  # since when, by thread
        self._end = -1  # where the last read ended
        self._known: tuple[float, Sequence[Origin]] = (-_ORIGINS, ())
        self._first, self._first_of = 0, 0  # all blocks below it are here, in that generation
        self.opened_at = self.read_at = time.monotonic()
        self.touched: list[int] = []
        self._seen = bytearray(-(-table.block_count // 8))

    @property
    def waits(self) -> float:
        """Seconds for which a read has been waiting, the longest one of them; 0 without any."""
        since = min(list(self._reading.values()), default=None)
        return 0.0 if since is None else time.monotonic() - since

    def read(self, offset: int, count: int) -> bytes:
        """Return bytes of the layer.

        Raises:
            OSError: Its registry was away for longer than the deadline, or has something else.
        """
        reader = threading.get_ident()
        self._reading[reader] = time.monotonic()
        try:
            return self._read(offset, count)
        finally:
            del self._reading[reader]

    def _read(self, offset: int, count: int) -> bytes:
        blocks = self.table.blocks_of(offset, count)
        self.note(blocks)
        sequential = offset == self._end
        self._end, self.read_at = offset + count, time.monotonic()
        here = sum(self._here(block) for block in blocks)
        self.counts.add("blocks_hit", here)
        self.counts.add("blocks_missed", len(blocks) - here)
        first, last = blocks.start // _AROUND, (blocks.stop - 1) // _AROUND
        around = range(first * _AROUND, (last + 1) * _AROUND)
        along = range(blocks.start, blocks.stop + _READ_AHEAD) if sequential else around
        while True:
            generation = self.cache.generation
            got = self.fetch(blocks, along=along)
            try:
                data = self._joined(blocks, got, offset, count)
            except OSError:
                if generation == self.cache.generation:
                    raise
                continue
            # What came now was verified, and is no part of the cache.
            if len(got) == len(blocks) or generation == self.cache.generation:
                return data

    def _joined(self, blocks: range, got: dict[int, memoryview], offset: int, count: int) -> bytes:
        if not got:
            return self.cache.read(offset, count)
        size, pieces = self.table.block, list[bytes | memoryview]()
        for block in blocks:
            start = max(offset - block * size, 0)
            end = min(offset + count - block * size, self.table.block_size(block))
            if block in got:
                pieces.append(got[block][start:end])
            else:
                pieces.append(self.cache.read(block * size + start, end - start))
        return b"".join(pieces)

    def fetch(self, blocks: range, *, along: range = range(0)) -> dict[int, memoryview]:
        """Make blocks present; return those that came now.

        Args:
            blocks: Their numbers.
            along: Those that may come along, if any has to be fetched; `blocks` lies within.

        Raises:
            OSError: As for `read`.
        """
        if all(self._here(block) for block in blocks):
            return {}
        wanted = range(along.start, min(along.stop, self.table.block_count)) if along else blocks
        missing = [block for block in wanted if not self._here(block)]
        mine, others = self._divided(missing)
        got: dict[int, memoryview] = {}
        try:
            for flight, run in mine:
                # What lies apart would be a request of its own, which the read would wait for.
                if run.start < blocks.stop and blocks.start < run.stop:
                    flight.blocks = self._run(run, self._deadline)
                    got.update(flight.blocks)
        except OSError:
            raise
        except Exception as error:
            raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error
        finally:
            for flight, run in mine:
                self._landed(flight, run)
        for block, flight in others.items():
            if block not in blocks:
                continue
            flight.done.wait()
            if block in flight.blocks:
                got[block] = flight.blocks[block]
            elif not self.cache.has(block):  # the other one gave up: this one has its own time
                got.update(self.fetch(range(block, block + 1)))
        return {block: data for block, data in got.items() if block in blocks}

    def fetch_packed(self, runs: Sequence[range], pack: str, offset: int) -> bool:
        """Make blocks present that another blob has one after the other.

        Tried once; blocks that others fetch are theirs.

        Args:
            runs: Their numbers.
            pack: Digest of that blob.
            offset: Where they begin in it.

        Returns:
            Whether it had them. What did not come so is left to `fetch`.
        """
        places, count = dict[int, int](), 0
        for block in (block for run in runs for block in run):
            places[block] = count
            count += self.table.packed_size(range(block, block + 1))
        mine: list[tuple[_Flight, range]] = []
        for run in runs:  # what follows each other in the layer need not in the pack
            mine += self._divided([block for block in run if not self._here(block)])[0]
        try:
            if not mine:
                return True
            begun = time.monotonic()
            data = self._piece(pack, offset, count)
            if data is None:
                return False
            for flight, run in mine:
                start = places[run.start]
                packed = data[start : start + self.table.packed_size(run)]
                piece, wrong = self.table.unpacked(run, packed)
                if wrong:
                    self.counts.add("corrupted_fetched", len(wrong))
                    self._log(f"blocks {wrong} of {self._digest} are others in the pack {pack}")
                    return False
                flight.blocks = self._kept(run, piece)
                self.counts.add("bytes_fetched", len(packed))
            self.counts.add("requests")
            self.counts.add("seconds_fetching", time.monotonic() - begun)
            return True
        finally:
            for flight, run in mine:
                self._landed(flight, run)

    def _piece(self, digest: str, offset: int, count: int) -> memoryview | None:
        for origin in self._known_origins(anew=False):
            try:
                data = origin.range(digest, offset, count)
            except FleetfootError as error:
                self.counts.add(f"errors_{_CAUSES.get(type(error), 'refused')}")
                self._log(str(error))
                continue
            if len(data) == count:
                return memoryview(data)
        return None

    def missing(self) -> Iterator[int]:
        """Return numbers of blocks that are not here, ascending; verifies those that are."""
        if self._first_of != (generation := self.cache.generation):
            self._first, self._first_of = 0, generation
        while self._first < self.table.block_count and self._here(self._first):
            self._first += 1  # what was seen once is not looked at again
        rest = range(self._first, self.table.block_count)
        return (block for block in rest if not self._here(block))

    def _here(self, block: int) -> bool:
        if self.cache.has(block):
            return True
        found = self.cache.confirm(block)
        if found is False:
            self.counts.add("corrupted_cached")
            self._log(f"block {block} of {self._digest} is damaged in the cache: fetched again")
        return bool(found)

    def _divided(
        self, missing: list[int]
    ) -> tuple[list[tuple[_Flight, range]], dict[int, _Flight]]:
        """Divide blocks into runs that this thread fetches, and those that others fetch already."""
        mine: list[tuple[_Flight, range]] = []
        others: dict[int, _Flight] = {}
        with self._lock:
            for block in missing:
                if self.cache.has(block):  # it came meanwhile
                    continue
                if block in self._flights:
                    others[block] = self._flights[block]
                    continue
                if mine and mine[-1][1].stop == block and len(mine[-1][1]) < _LARGEST_RUN:
                    flight, run = mine.pop()
                    mine.append((flight, range(run.start, block + 1)))
                else:
                    flight = _Flight()
                    mine.append((flight, range(block, block + 1)))
                self._flights[block] = flight
        return mine, others

    def _landed(self, flight: _Flight, run: range) -> None:
        with self._lock:
            for block in run:
                if self._flights.get(block) is flight:
                    del self._flights[block]
        flight.done.set()

    def _run(self, run: range, deadline: float) -> dict[int, memoryview]:
        return self._kept(run, self._fetched(run, deadline))

    def _kept(self, run: range, data: bytes) -> dict[int, memoryview]:
        """Keep verified blocks; return them, which are no copies."""
        if not self.cache.write(run.start, data):
            self.counts.add("uncached", len(run))
        view, size = memoryview(data), self.table.block
        pieces = (view[start : start + size] for start in range(0, len(view), size))
        return dict(zip(run, pieces, strict=True))

    def _fetched(self, run: range, deadline: float) -> bytes:
        """Ask until verified blocks came, or the deadline is over."""
        begun, attempt = time.monotonic(), 0
        offset, count = self.table.place_of(run)
        damaged: Counter[int] = Counter()
        while True:
            why = "no repository that has it is known"
            for number, origin in enumerate(self._known_origins(anew=bool(attempt))):
                try:
                    data = origin.range(self._digest, offset, count)
                except FleetfootError as error:
                    self.counts.add(f"errors_{_CAUSES.get(type(error), 'refused')}")
                    why = str(error)
                    continue
                plain, wrong = self.table.unpacked(run, data)
                if not wrong:
                    self.counts.add("requests")
                    self.counts.add("bytes_fetched", count)
                    self.counts.add("seconds_fetching", time.monotonic() - begun)
                    return plain
                damaged[number] += 1
                self.counts.add("corrupted_fetched", len(wrong))
                why = f"blocks {wrong} of {self._digest} came damaged"
                self._log(why)
            if damaged and min(damaged.values()) > 1:
                raise self._failed(f"{why}, and again when they were fetched once more")
            waited = time.monotonic() - begun
            if waited >= deadline:
                raise self._failed(f"{why}; given up after {waited:.0f} s")
            if attempt == 0:
                self._log(f"{why}; reads wait for up to {deadline:.0f} s")
            pause = _PAUSES[min(attempt, len(_PAUSES) - 1)]
            time.sleep(min(pause, max(deadline - waited, 0)))
            attempt += 1

    def _known_origins(self, *, anew: bool) -> Sequence[Origin]:
        asked, known = self._known
        if anew or time.monotonic() - asked >= _ORIGINS:
            try:
                known = self._origins()
            except (OSError, FleetfootError) as error:  # a description that is just being written
                self._log(str(error))
                return []
            self._known = time.monotonic(), known
        return known

    def _failed(self, why: str) -> OSError:
        self.counts.add("reads_failed")
        self._log(f"a read fails: {why}")
        return OSError(errno.EIO, why)

    def note(self, blocks: Iterable[int]) -> None:
        """Remember that blocks were read; `touched` has them in the order of their first reads."""
        for block in blocks:
            bit = 1 << (block & 7)
            if not self._seen[block >> 3] & bit:
                self._seen[block >> 3] |= bit
                self.touched.append(block)
