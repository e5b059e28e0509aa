"""Draws ring.svg, the stages of the mLSTM's walks and their mbarriers: `python docs/kernels/draw_ring.py [FILE]`

Lengths are the picture's own: nothing in it was measured.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

LOAD, READ, ARROW = "#d9c8e3", "#c6dbef", "#b03a2e"
STAGES, SPANS = 3, 7
ROW = 1.5
LOADING, READING = 1.7, 1.0  # a load takes longer than a span's products: the stages hide it


def draw(file: Path) -> None:
    plt.rcParams["svg.hashsalt"] = "ring"  # the same file every time
    plt.rcParams["svg.fonttype"] = "none"  # text, not outlines
    plt.rcParams["font.size"] = 8
    figure, axes = plt.subplots(figsize=(10, 3.0))
    for span in range(SPANS):
        _span(axes, span)
    axes.set_yticks([ROW * stage for stage in range(STAGES)])
    axes.set_yticklabels([f"stage {stage}" for stage in range(STAGES)])
    axes.set_ylim(ROW * STAGES - 0.6, -0.9)
    axes.set_xticks([])
    axes.set_xlabel("time")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.savefig(file, format="svg", metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)


def _span(axes: Axes, span: int) -> None:
    """Sent when the span that the stage had before has been read; read one span after the other."""
    row, read = ROW * (span % STAGES), LOADING + span * READING
    sent = max(0.0, read + READING - STAGES * READING) if span >= STAGES else 0.0
    full, empty = sent + LOADING, read + READING
    _bar(axes, row, sent, LOADING, LOAD, f"TMA: span {span}")
    _bar(axes, row, read, READING, READ, f"read: {span}")
    axes.annotate("full", (full, row - 0.26), (full, row - 0.55), ha="center", color=ARROW, arrowprops=_arrow())
    axes.annotate("empty", (empty, row + 0.26), (empty, row + 0.7), ha="center", color=ARROW, arrowprops=_arrow())


def _arrow() -> dict[str, object]:
    return {"arrowstyle": "->", "color": ARROW, "lw": 1.0}


def _bar(axes: Axes, row: float, start: float, length: float, colour: str, label: str) -> None:
    axes.barh(row, length, left=start, height=0.5, color=colour, edgecolor="white")
    axes.text(start + length / 2, row, label, ha="center", va="center")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("ring.svg"))
