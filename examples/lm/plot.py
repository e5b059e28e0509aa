"""The loss curves as a PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display needed

import matplotlib.pyplot as plt
import numpy as np

from .checkpoint import write_atomically
from .training import bits_per_byte


def plot_losses(path: Path, losses: Mapping[str, Sequence[float]], held_out: Mapping[str, float], tokens: int) -> None:
    """Training loss of each model against bytes seen, raw and smoothed, and its held-out value as a dashed line.

    losses: nats per byte, one per step; held_out: bits per byte; tokens: bytes per step.
    """
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name, values in losses.items():
        bits = np.array([bits_per_byte(v) for v in values])
        bytes_seen = np.arange(1, len(bits) + 1) * tokens
        window = max(1, len(bits) // 50)
        smooth = np.convolve(bits, np.ones(window) / window, mode="valid")
        (line,) = axes.plot(bytes_seen[window - 1 :], smooth, label=f"{name}, training (mean of {window} steps)")
        axes.plot(bytes_seen, bits, color=line.get_color(), alpha=0.2, linewidth=0.8)
        axes.axhline(
            held_out[name], color=line.get_color(), linestyle="--", label=f"{name}, held-out: {held_out[name]:.3f}"
        )
    axes.set_xlabel("training bytes seen")
    axes.set_ylabel("bits per byte")
    axes.set_title("Byte-level language models")
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    plt.close(figure)
    write_atomically(path, buffer.getvalue())
