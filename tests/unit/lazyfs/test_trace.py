"""Traces keep the order of first reads, and what is wrong with one is told."""

from __future__ import annotations

import pytest

from fleetfoot.errors import FleetfootError
from fleetfoot.lazyfs.trace import dump, parse, runs


def test_blocks_that_lie_side_by_side_are_one_run() -> None:
    assert runs([25, 26, 7, 1, 2, 9, 8, 17]) == [
        range(25, 27),
        range(7, 10),
        range(1, 3),
        range(17, 18),
    ]
    assert runs([25, 7, 1, 10, 25]) == [range(n, n + 1) for n in (25, 7, 1, 10)]
    assert runs(range(100)) == [range(64), range(64, 100)]
    assert runs([]) == []


def test_it_is_read_as_it_was_written() -> None:
    data = dump({"b": [13, 14, 0], "a": [1], "none": []})
    assert data == b'{"a":[[1,1]],"b":[[13,2],[0,1]]}'
    assert parse(data) == {"a": [range(1, 2)], "b": [range(13, 15), range(1)]}


WRONG = ['{"a": 1}', '{"a": [[1]]}', '{"a": [["x", 1]]}', '{"a": [[-1, 1]]}', '{"a": [[0, 65]]}']


@pytest.mark.parametrize("data", [b"", b"[]", *(each.encode() for each in WRONG)])
def test_what_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(FleetfootError, match="nothing is fetched ahead"):
        parse(data)
