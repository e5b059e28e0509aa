"""Loss against size: a ladder of small models of each architecture."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import nn

from .language import LSTM_LAYERS, METRIC, Language, LanguageOptions
from .models import LSTM, Transformer, xlstm
from .task import Models, Options, Results, Verdict, option


@dataclass(frozen=True)
class LadderOptions(LanguageOptions):
    steps: int = option(200, "training steps of each model")
    dim: int = option(16, "embedding dimension of the smallest xLSTM; the other models have as many parameters")
    sizes: int = option(4, "number of sizes, each twice as wide as the one before")
    lr: float = option(3e-2, "peak learning rate of the smallest xLSTM; it falls with the square root of the width")
    lstm_lr: float = option(4e-2, "peak learning rate of the smallest LSTM")
    transformer_lr: float = option(3e-2, "peak learning rate of the smallest Transformer")


class Ladder(Language):
    name = "ladder"
    title = "Loss against size"
    claim = (
        "The loss of xLSTM falls with its size, and stays below that of a Transformer of the same size "
        "(scaling laws, arXiv 2405.04517, section 4.3)."
    )
    setting = (
        "Bytes of Python code. The models have some ten thousand to a few hundred thousand parameters, embedding and "
        "head included. All take the same few steps on the same batches. The LSTM has one layer. The exponent is the "
        "slope of a straight line through the logarithms of loss and parameters."
    )
    defaults: ClassVar[Options] = LadderOptions()
    full: ClassVar[Options] = replace(
        LadderOptions(),
        dim=128,
        seq_len=1024,
        batch_size=64,
        blocks=8,
        steps=10000,
        lr=2e-3,
        lstm_lr=2e-3,
        transformer_lr=2e-3,
    )
    families: ClassVar[tuple[str, ...]] = ("xLSTM[1:1]", "LSTM", "Transformer")
    options: LadderOptions

    def __init__(self, options: LadderOptions, seed: int, device: torch.device) -> None:
        if options.sizes < 2:
            raise ValueError(f"--sizes {options.sizes} must be 2 at least: a line needs two points")
        super().__init__(options, seed, device)

    def models(self) -> Models:
        blocks, heads = self.options.blocks, self.options.heads
        backbones: list[Callable[[int], nn.Module]] = [
            lambda dim: xlstm("1:1", dim, blocks, heads),
            lambda dim: LSTM(dim, LSTM_LAYERS),
            lambda dim: Transformer(dim, blocks, heads),
        ]
        models: dict[str, Callable[[], nn.Module]] = {}
        for size in range(self.options.sizes):
            names = [rung(family, size) for family in self.families]
            rungs = dict(zip(names, backbones, strict=True))
            models |= self.sized(rungs, names[0], self.options.dim * 2**size)
        return models

    def lr(self, name: str) -> float:
        return super().lr(name) / math.sqrt(2 ** (int(name.rsplit(maxsplit=1)[1]) - 1))

    def curve(self, results: Mapping[str, Results], family: str) -> tuple[list[int], list[float], float, float]:
        """Parameters and losses by size; exponent and factor of the power law that fits them."""
        found = [results[rung(family, size)] for size in range(self.options.sizes)]
        parameters, bits = [result["parameters"] for result in found], [result[METRIC] for result in found]
        slope, intercept = np.polyfit(np.log(parameters), np.log(bits), 1)
        return parameters, bits, float(slope), math.exp(intercept)

    def verdict(self, results: Mapping[str, Results]) -> Verdict:
        curves = {family: self.curve(results, family) for family in self.families}
        ours, _, theirs = (curves[family][1] for family in self.families)
        falls = all(later < earlier for earlier, later in zip(ours, ours[1:], strict=False))
        below = sum(a < b for a, b in zip(ours, theirs, strict=True))
        slopes = ", ".join(f"{family} {curve[2]:.3f}" for family, curve in curves.items())
        text = f"xLSTM below the Transformer at {below} of {len(ours)} sizes; exponent of the parameters: {slopes}"
        return Verdict(falls and below == len(ours), text)

    def plot(self, axes: Axes, results: Mapping[str, Results]) -> None:
        for family in self.families:
            parameters, bits, slope, factor = self.curve(results, family)
            (points,) = axes.loglog(parameters, bits, "o", label=f"{family}, exponent {slope:.3f}")
            axes.loglog(parameters, factor * np.array(parameters) ** slope, color=points.get_color())
        axes.set_xlabel("parameters")
        axes.set_ylabel(METRIC)
        axes.yaxis.set_minor_formatter("{x:.3g}")
        axes.legend()


def rung(family: str, size: int) -> str:
    """Name of a model; size from 0."""
    return f"{family} size {size + 1}"
