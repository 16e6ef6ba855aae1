"""Pictures of what a start read show where it was, however much there is beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fleetfoot.lazyfs.picture import LayerRead, draw, strip

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("blocks", "touched", "shown"),
    [
        (8, [0, 7], "█      █"),
        (8, [], " " * 8),
        (32, [0, 1, 2, 3], "█" + " " * 7),
        (32, [31, 4, 5], " ▒     ░"),
        (3, [1], " █ "),
    ],
)
def test_a_strip_is_darker_where_more_was_read(blocks: int, touched: list[int], shown: str) -> None:
    assert strip(LayerRead("layer", blocks, touched), 8) == shown


def test_one_block_of_many_is_seen() -> None:
    assert strip(LayerRead("layer", 100_000, [50_000]), 10) == "     ░    "


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    layers = [LayerRead("base", 100, [5, 1]), LayerRead("untouched", 3, [])]
    draw(tmp_path / "read.png", layers, "a start")
    assert (tmp_path / "read.png").read_bytes().startswith(b"\x89PNG")
