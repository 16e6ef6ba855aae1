"""Which parts of an image's layers were read: for a terminal, and as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["LayerRead", "draw", "strip"]

_SHADES = " ░▒▓█"
_WIDTH_INCHES, _ROW_INCHES, _MARGIN_INCHES = 9.0, 0.45, 1.2


@dataclass(frozen=True)
class LayerRead:
    """What was read of a layer.

    Attributes:
        name: How it is called in the picture.
        blocks: How many it has.
        touched: Numbers of those that were read, in the order of their first reads.
    """

    name: str
    blocks: int
    touched: Sequence[int]

    def parts(self, cells: int) -> list[float]:
        """Return which part (0 to 1) was read of each of as many pieces of the layer."""
        sizes, read = [0] * cells, [0] * cells
        for block in range(self.blocks):
            sizes[block * cells // self.blocks] += 1
        for block in self.touched:
            read[block * cells // self.blocks] += 1
        return [part / size if size else 0.0 for part, size in zip(read, sizes, strict=True)]


def strip(layer: LayerRead, width: int) -> str:
    """Return a line of characters for a layer: the darker, the more was read there."""
    width = min(width, layer.blocks)
    last = len(_SHADES) - 1
    # What was read at all is seen.
    return "".join(_SHADES[-int(-part * last // 1)] for part in layer.parts(width))


def draw(path: Path, layers: Sequence[LayerRead], title: str) -> None:
    """Draw a row for each layer; colours say when a place was first read (PNG or SVG, by the name).

    Args:
        path: The picture.
        layers: From the lowest to the topmost.
        title: Above the picture.
    """
    import matplotlib as mpl  # noqa: PLC0415  # other commands need not wait for it

    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    height = _MARGIN_INCHES + _ROW_INCHES * len(layers)
    figure, axis = plt.subplots(figsize=(_WIDTH_INCHES, height), layout="constrained")
    shown = None
    for row, layer in enumerate(layers):
        axis.broken_barh([(0, 1)], (row - 0.4, 0.8), color="#e8e8e8")
        width = 1 / max(layer.blocks, 1)
        places = [block * width for block in layer.touched]
        order = [100 * place / max(len(places) - 1, 1) for place in range(len(places))]
        rows = [row] * len(places)
        shown = axis.scatter(places, rows, c=order, cmap="viridis", marker="|", s=220)
        shown.set_clim(0, 100)
    axis.set_yticks(range(len(layers)), [layer.name for layer in layers])
    axis.set_xticks([])
    axis.set_xlim(0, 1)
    axis.set_ylim(-0.6, len(layers) - 0.4)
    if shown is not None:
        figure.colorbar(shown, ax=axis, label="% of the blocks read before", shrink=0.9)
    axis.set_title(title)
    figure.savefig(path, dpi=150)
    plt.close(figure)
