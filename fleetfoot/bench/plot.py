"""Pictures of stages: a bar a machine (or arm), cut where each stage ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["stages"]

_ROW_INCHES, _FRAME_INCHES, _WIDTH_INCHES = 0.55, 1.6, 9.0
_SMALLEST_LABELLED = 0.035  # of the longest bar


def stages(
    path: Path,
    bars: Mapping[str, Mapping[str, float]],
    names: Mapping[str, str],
    title: str,
) -> None:
    """Draw stacked bars and write them as a picture (PNG or SVG, by the file's name).

    Args:
        path: The picture.
        bars: Label to the length of each stage in seconds.
        names: Stage to what the legend calls it, in order.
        title: Above the picture.
    """
    height = _FRAME_INCHES + _ROW_INCHES * len(bars)
    figure, axes = plt.subplots(figsize=(_WIDTH_INCHES, height), layout="constrained")
    colours = plt.get_cmap("viridis")
    labels = list(bars)
    longest = max((sum(lengths.values()) for lengths in bars.values()), default=0.0)
    left = dict.fromkeys(labels, 0.0)
    for number, (stage, legend) in enumerate(names.items()):
        widths = [bars[label].get(stage, 0.0) for label in labels]
        shade = number / max(1, len(names) - 1)
        axes.barh(labels, widths, left=list(left.values()), color=colours(shade), label=legend)
        for row, (label, width) in enumerate(zip(labels, widths, strict=True)):
            if width > _SMALLEST_LABELLED * longest:
                middle = left[label] + width / 2
                ink = "white" if shade < 0.6 else "black"  # noqa: PLR2004  (readable on the shade)
                axes.text(middle, row, f"{width:.1f}", ha="center", va="center", color=ink)
            left[label] += width
    for row, total in enumerate(left.values()):
        axes.text(total, row, f" {total:.1f} s", ha="left", va="center")
    axes.set_xlim(0, longest * 1.12 or 1)
    axes.invert_yaxis()
    axes.set_xlabel("seconds since the machine's start")
    axes.set_title(title)
    axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.28), frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
