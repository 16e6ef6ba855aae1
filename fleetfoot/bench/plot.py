"""Pictures: stages as bars, two sides' latency, how soon a kill is healed, pulls."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["failover", "pulls", "sides", "stages"]

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


def sides(path: Path, arms: Mapping[str, Mapping[str, float]], title: str) -> None:
    """Draw what online and offline met in each arm (PNG or SVG, by the file's name).

    Args:
        path: The picture.
        arms: Arm to its metrics, as bench apiserver names them.
        title: Above the picture.
    """
    figure, (left, right) = plt.subplots(
        ncols=2, figsize=(_WIDTH_INCHES, 4.0), layout="constrained", width_ratios=(3, 2)
    )
    colours = plt.get_cmap("viridis")
    bars = {
        "idle p50": "idle_p50_ms",
        "idle p99": "idle_p99_ms",
        "storm p50": "online_p50_ms",
        "storm p99": "online_p99_ms",
    }
    width = 0.8 / len(bars)
    for number, (legend, key) in enumerate(bars.items()):
        places = [row + number * width for row in range(len(arms))]
        values = [metrics[key] for metrics in arms.values()]
        drawn = left.bar(places, values, width, label=legend, color=colours(number / len(bars)))
        left.bar_label(drawn, fmt="%.3g", fontsize=8)
    left.set_yscale("log")
    left.set_xticks([row + 0.4 - width / 2 for row in range(len(arms))], list(arms))
    left.set_ylabel("ms until online was answered")
    left.legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    left.margins(y=0.1)
    done = right.bar(
        list(arms), [m["offline_throughput"] for m in arms.values()], color=colours(0.4)
    )
    right.bar_label(done, fmt="%.3g")
    right.set_ylabel("offline requests answered a second")
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def failover(
    path: Path,
    rounds: Mapping[str, Sequence[Mapping[str, float]]],
    limit: float,
    title: str,
) -> None:
    """Draw how long pods waited after each kill, and what online met (PNG or SVG).

    Args:
        path: The picture.
        rounds: Arm to the metrics of each round, as bench failover names them.
        limit: Seconds that a pod should at most wait.
        title: Above the picture.
    """
    figure, (left, right) = plt.subplots(
        ncols=2, figsize=(_WIDTH_INCHES, 4.0), layout="constrained", width_ratios=(3, 2)
    )
    colours, arms = plt.get_cmap("viridis"), list(rounds)
    for row, found in enumerate(rounds.values()):
        waited = [one["next_bound_s"] for one in found]
        left.scatter([row] * len(waited), waited, color=colours(0.4), zorder=2)
        left.annotate(f"{max(waited):.2f}", (row, max(waited)), (8, 0), textcoords="offset points")
    left.axhline(limit, color="black", linestyle="--", linewidth=1, label=f"goal: {limit:g} s")
    left.set_xticks(range(len(arms)), arms)
    left.set_ylabel("s until the next pod was bound")
    left.set_ylim(bottom=0)
    left.margins(x=0.2)
    left.legend(frameon=False)
    width = 0.4
    for number, (key, legend) in enumerate({"resent": "sent again", "failed": "failed"}.items()):
        places = [row + number * width for row in range(len(arms))]
        counts = [sum(one[key] for one in found) for found in rounds.values()]
        drawn = right.bar(places, counts, width, label=legend, color=colours(number / 2))
        right.bar_label(drawn, fmt="%d")
    right.set_xticks([row + width / 2 for row in range(len(arms))], arms)
    right.set_ylabel("online requests, all rounds")
    right.margins(y=0.25)
    right.legend(frameon=False)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def pulls(
    path: Path,
    answers: Mapping[str, Mapping[str, float]],
    moved: Mapping[str, Mapping[str, float]],
    title: str,
) -> None:
    """Draw how soon workloads answered, and what had come by then (PNG or SVG, by the file's name).

    Args:
        path: The picture.
        answers: Workload to the seconds of each arm.
        moved: Workload to the part of the packed image of each arm.
        title: Above the picture.
    """
    figure, axes = plt.subplots(ncols=2, figsize=(_WIDTH_INCHES, 4.0), layout="constrained")
    colours = plt.get_cmap("viridis")
    sides = (
        (answers, "seconds until the first answer", "%.1f"),
        ({name: _percent(found) for name, found in moved.items()}, "% of the packed image", "%.0f"),
    )
    for side, (values, label, form) in zip(axes, sides, strict=True):
        arms = list(next(iter(values.values())))
        width = 0.8 / len(arms)
        for number, arm in enumerate(arms):
            places = [row + number * width for row in range(len(values))]
            heights = [found[arm] for found in values.values()]
            shade = colours(number / len(arms))
            drawn = side.bar(places, heights, width, label=arm, color=shade)
            side.bar_label(drawn, fmt=form, fontsize=7)
        side.set_yscale("log")
        side.set_xticks([row + 0.4 - width / 2 for row in range(len(values))], list(values))
        side.set_ylabel(label)
        side.margins(y=0.1)
    axes[0].legend(frameon=False, ncols=4, loc="upper center", bbox_to_anchor=(1.0, -0.1))
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _percent(parts: Mapping[str, float]) -> dict[str, float]:
    return {key: 100 * part for key, part in parts.items()}
