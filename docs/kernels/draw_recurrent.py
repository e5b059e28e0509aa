"""Draws recurrent.svg, two steps of a team of four blocks: `python docs/kernels/draw_recurrent.py [FILE]`

Lengths are the picture's own: nothing in it was measured.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

PHASES = (("product", 0.34, "#7da7d9"), ("sums", 0.12, "#c6dbef"), ("cells", 0.26, "#f2a65a"))
LENGTH = sum(length for _, length, _ in PHASES)
TRAVEL = 0.12  # of a message between blocks
STARTS = (0.00, 0.06, 0.14, 0.03)  # blocks are never quite in step with each other
READ, WRITTEN = "#7da7d9", "#f2a65a"


def draw(file: Path) -> None:
    plt.rcParams["svg.hashsalt"] = "recurrent"  # the same file every time
    plt.rcParams["svg.fonttype"] = "none"  # text, not outlines
    plt.rcParams["font.size"] = 8
    figure, axes = plt.subplots(figsize=(10, 4.4))
    rows = [f"block {k}" for k in range(len(STARTS))]
    ends = [start + LENGTH for start in STARTS]
    complete = max(ends) + TRAVEL  # the last message of the step has arrived
    for row, start in enumerate(STARTS):
        _phases(axes, row, start, "t")
        _bar(axes, row, ends[row], complete, "#f0f0f0", "wait" if row != 2 else "")
        _phases(axes, row, complete, "t + 1")
        for other in range(len(STARTS)):
            _message(axes, row, other, ends[row])
    _buffers(axes, len(STARTS), ends, complete)
    axes.set_yticks([*range(len(STARTS)), len(STARTS) + 0.6, len(STARTS) + 1.4])
    axes.set_yticklabels([*rows, "buffer 0 of block 0", "buffer 1 of block 0"])
    axes.set_ylim(len(STARTS) + 2, -0.6)
    axes.set_xlim(-0.02, complete + LENGTH + TRAVEL + 0.02)
    axes.set_xticks([])
    axes.set_xlabel("time")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.savefig(file, format="svg", metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)


def _phases(axes: Axes, row: int, start: float, step: str) -> None:
    for name, length, colour in PHASES:
        _bar(axes, row, start, start + length, colour, f"{name}, {step}" if name == "product" else name)
        start += length


def _bar(axes: Axes, row: float, start: float, end: float, colour: str, label: str) -> None:
    axes.barh(row, end - start, left=start, height=0.5, color=colour, edgecolor="white")
    axes.text((start + end) / 2, row, label, ha="center", va="center")


def _message(axes: Axes, sender: int, receiver: int, sent: float) -> None:
    """Each block writes its part of the new h into every block: the arrows of one sender are drawn in full."""
    faint = sender != 2
    style = {"arrowstyle": "->", "color": "#bbbbbb" if faint else "#b03a2e", "lw": 0.6 if faint else 1.2}
    axes.annotate("", (sent + TRAVEL, receiver + 0.28), (sent, sender + 0.28), arrowprops=style)


def _buffers(axes: Axes, first: int, ends: list[float], complete: float) -> None:
    """h before step t is read from buffer 0 while the new h arrives in buffer 1; then they change places."""
    multiply = PHASES[0][1]
    _bar(axes, first + 0.6, STARTS[0], STARTS[0] + multiply, READ, "h of t - 1 is read")
    _bar(axes, first + 1.4, min(ends), complete, WRITTEN, "h of t arrives")
    _bar(axes, first + 1.4, complete, complete + multiply, READ, "h of t is read")
    _bar(axes, first + 0.6, complete + LENGTH, complete + LENGTH + TRAVEL, WRITTEN, "t + 1")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("recurrent.svg"))
