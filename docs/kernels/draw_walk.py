"""Draws walk.svg, three spans of the mLSTM's forward walk: `python docs/kernels/draw_walk.py [FILE]`

Lengths are the picture's own: nothing in it was measured.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

STATE, VALUES, STORE, UPDATE, SCORES, LOAD = "#7da7d9", "#9fc8a5", "#eeeeee", "#c6dbef", "#f2a65a", "#d9c8e3"
SPANS = 3
PARTS = (("Cᵀ Qᵀ", 0.26, STATE), ("Vᵀ Pᵀ", 0.16, VALUES), ("h", 0.16, STORE), ("Cᵀ += Vᵀ K", 0.34, UPDATE))
DUTY = 0.46  # P of the next span: from the end of h on, while Cᵀ is updated
GROUPS = ("warpgroup 0", "warpgroup 1")
PERIOD = 1.04


def draw(file: Path) -> None:
    plt.rcParams["svg.hashsalt"] = "walk"  # the same file every time
    plt.rcParams["svg.fonttype"] = "none"  # text, not outlines
    plt.rcParams["font.size"] = 8
    figure, axes = plt.subplots(figsize=(10, 3.4))
    for span in range(SPANS):
        _load(axes, span)
        for group in range(len(GROUPS)):
            _turn(axes, span, group)
    axes.set_yticks([0, 1.2, 1.75, 3.0, 3.55])
    axes.set_yticklabels(["producer", GROUPS[0], "its duty", GROUPS[1], "its duty"])
    axes.set_ylim(4.1, -0.5)
    axes.set_xlim(-PERIOD - 0.05, SPANS * PERIOD + 0.1)
    axes.set_xticks([])
    axes.set_xlabel("time")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.savefig(file, format="svg", metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)


def _bar(axes: Axes, row: float, start: float, length: float, colour: str, label: str) -> None:
    axes.barh(row, length, left=start, height=0.5, color=colour, edgecolor="white")
    axes.text(start + length / 2, row, label, ha="center", va="center")


def _load(axes: Axes, span: int) -> None:
    """A stage of the ring is filled while the one before it is read."""
    label = f"Q, K, V and gates of span {'c' if span == 0 else f'c + {span}'}"
    _bar(axes, 0, (span - 1) * PERIOD, PERIOD - 0.06, LOAD, label)


def _turn(axes: Axes, span: int, group: int) -> None:
    row, start = 1.2 + 1.8 * group, span * PERIOD
    for name, length, colour in PARTS:
        _bar(axes, row, start, length, colour, name)
        start += length
    if span % len(GROUPS) != group:  # the duty for the next span is the other one's
        return
    update = PARTS[-1][1]
    begin, next_span = start - update, (span + 1) * PERIOD
    _bar(axes, row + 0.55, begin, DUTY, SCORES, f"P, n of c + {span + 1}")
    needed = next_span + PARTS[0][1]
    for other in range(len(GROUPS)):
        if span + 1 < SPANS:
            arrow = {"arrowstyle": "->", "color": "#b03a2e", "lw": 1.0}
            axes.annotate("", (needed, 1.2 + 1.8 * other + 0.26), (begin + DUTY, row + 0.55), arrowprops=arrow)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("walk.svg"))
