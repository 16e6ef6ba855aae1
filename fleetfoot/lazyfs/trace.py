"""Traces: which blocks of an image a start reads, in the order of their first reads.

A trace is a JSON object: for each sector image (hex of its table's SHA-256) a list of runs,
`[first block, how many]`. Nodes fetch them ahead in this order; what is wrong with a trace costs
time, not truth, for every block is verified as ever.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from fleetfoot.errors import FleetfootError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["dump", "parse", "runs"]

_LONGEST = 64  # blocks of a run: a sector, so that what is read first does not wait for much


def runs(blocks: Sequence[int]) -> list[range]:
    """Join blocks that lie side by side, in the order of the first reads.

    Args:
        blocks: Numbers, in the order of their first reads.
    """
    order = {block: place for place, block in reversed(list(enumerate(blocks)))}
    joined: list[range] = []
    for block in sorted(order):
        last = joined[-1] if joined else range(0)
        if last and block == last.stop and block < last.start + _LONGEST:
            joined[-1] = range(last.start, block + 1)
        else:
            joined.append(range(block, block + 1))
    return sorted(joined, key=lambda run: min(order[block] for block in run))


def dump(touched: Mapping[str, Sequence[int]]) -> bytes:
    """Return the trace of blocks that were read, by sector image."""
    plain = {
        image: [[run.start, len(run)] for run in runs(blocks)]
        for image, blocks in sorted(touched.items())
        if blocks
    }
    return json.dumps(plain, separators=(",", ":")).encode()


def parse(data: bytes) -> dict[str, list[range]]:
    """Read a trace.

    Raises:
        FleetfootError: It is none.
    """
    try:
        plain = json.loads(data)
        return {str(name): [_run(*each) for each in listed] for name, listed in plain.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FleetfootError(
            f"a trace cannot be read: {error}", "nothing is fetched ahead", "record it again"
        ) from error


def _run(first: int, count: int) -> range:
    if first < 0 or not 0 < count <= _LONGEST:
        raise ValueError(f"{count} blocks from {first} on")
    return range(first, first + count)
