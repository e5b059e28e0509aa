"""Nearest-neighbour search: read a query, then vectors with values; tell the value of the nearest vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn
from torch.nn import functional as F

from .models import standard
from .task import Models, Options, Results, Task, Verdict, option

MARGIN = 0.5  # the claim holds if the error of the sLSTM is at most this share of the LSTM's
CHANCE = 1 / 12  # variance of the values: the error of a model that always says their mean
_TEST_STREAM, _SCORE_STREAM = 1, 2


@dataclass(frozen=True)
class NearestNeighborOptions(Options):
    steps: int = option(1500, "training steps of each model")
    heads: int = option(2, "heads of each block")
    lstm_lr: float = option(1e-2, "peak learning rate of the LSTM")
    transformer_lr: float = option(1e-3, "peak learning rate of the Transformer")
    max_length: int = option(16, "most vectors after the query in training")
    test_length: int = option(64, "most vectors after the query in the test")
    test_sequences: int = option(512, "number of test sequences")


class NearestNeighbor(Task):
    name = "nearest-neighbor"
    title = "Nearest-neighbour search: the value of the vector nearest to the query so far"
    claim = (
        "An LSTM struggles to revise what it has stored when a nearer vector comes. Exponential input gates remedy "
        "that: xLSTM[0:1] has a smaller mean squared error (arXiv 2405.04517, section 1, figure 2 left and appendix)."
    )
    setting = (
        "As in the paper: unit vectors in the plane, values between 0 and 1, two blocks, an answer after each vector. "
        "The models are smaller, and the steps far fewer. The sequences are shorter, since little is learned from "
        "those of the paper in so short a training. The query has the value -1, which no other vector has, so that a "
        "model can tell it from the vectors. The paper finds that the LSTM wants a high learning rate and the "
        "Transformer a low one: each has its own. Lengths beyond those of training are an addition, and not part of "
        "the verdict."
    )
    defaults: ClassVar[Options] = NearestNeighborOptions()
    full: ClassVar[Options] = replace(
        NearestNeighborOptions(),
        steps=100_000,
        max_length=64,
        test_length=256,
        dim=128,
        heads=4,
        batch_size=256,
        lr=1e-3,
        transformer_lr=1e-4,
    )
    options: NearestNeighborOptions

    def __init__(self, options: NearestNeighborOptions, seed: int, device: torch.device) -> None:
        super().__init__(options, seed, device)
        if options.test_length <= options.max_length:
            raise ValueError(f"--test-length {options.test_length} must be more than --max-length {options.max_length}")

    def models(self) -> Models:
        return standard(self.options, 3, 1, ("0:1", "1:0"), features=True, convolution=0)

    def lr(self, name: str) -> float:
        rates = {"LSTM": self.options.lstm_lr, "Transformer": self.options.transformer_lr}
        return rates.get(name, self.options.lr)

    @staticmethod
    def sequences(count: int, length: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """x (count, 1 + length, 3): the query, marked by the value -1, then vectors and their values.

        answers (count, length): after each vector, the value of the one that is nearest to the query so far.
        """
        angles = 2 * torch.pi * torch.rand(count, 1 + length, generator=rng)
        vectors = torch.stack([angles.cos(), angles.sin()], dim=-1)
        values = torch.rand(count, length, generator=rng)
        nearest = (vectors[:, 1:] @ vectors[:, 0, :, None]).squeeze(-1).cummax(dim=1).indices
        return torch.cat([vectors, F.pad(values, (1, 0), value=-1.0)[..., None]], dim=-1), values.gather(1, nearest)

    def loss(self, model: nn.Module, step: int) -> Tensor:
        rng = self.rng(0, step)
        length = int(torch.randint(1, self.options.max_length + 1, (1,), generator=rng))
        return self._errors(model, *self.sequences(self.options.batch_size, length, rng)).mean()

    def _errors(self, model: nn.Module, x: Tensor, answers: Tensor) -> Tensor:
        """Squared errors (B, S)."""
        said = model(x.to(self.device))[:, 1:, 0]
        return (said - answers.to(self.device)).square()

    @torch.no_grad()
    def score(self, model: nn.Module) -> float:
        """Share of the variance that is explained."""
        x, answers = self.sequences(128, self.options.max_length, self.rng(_SCORE_STREAM))
        return 1 - self._errors(model, x, answers).mean().item() / CHANCE

    @torch.no_grad()
    def results(self, model: nn.Module) -> Results:
        """by_length: mean squared error after 1, 2, ... vectors."""
        options = self.options
        x, answers = self.sequences(options.test_sequences, options.test_length, self.rng(_TEST_STREAM))
        errors = self._errors(model, x, answers).mean(0).cpu()
        return {
            self._trained: errors[: options.max_length].mean().item(),
            f"error {options.max_length + 1}-{options.test_length}": errors[options.max_length :].mean().item(),
            "by_length": [round(error, 5) for error in errors.tolist()],
        }

    @property
    def _trained(self) -> str:
        return f"error 1-{self.options.max_length}"

    def verdict(self, results: Mapping[str, Results]) -> Verdict:
        shown = {name: result[self._trained] for name, result in results.items()}
        numbers = ", ".join(f"{name} {error:.4f}" for name, error in shown.items())
        holds = shown["xLSTM[0:1]"] <= MARGIN * shown["LSTM"]
        return Verdict(holds, f"mean squared {self._trained}: {numbers}; always the mean {CHANCE:.4f}")

    def plot(self, axes: Axes, results: Mapping[str, Results]) -> None:
        for name, result in results.items():
            axes.plot(range(1, self.options.test_length + 1), result["by_length"], label=name)
        axes.axvline(self.options.max_length, color="grey", linestyle="--", linewidth=0.8, label="longest in training")
        axes.axhline(CHANCE, color="grey", linestyle=":", linewidth=0.8, label="always the mean")
        axes.set_yscale("log")
        axes.set_xlabel("vectors read")
        axes.set_ylabel("mean squared error")
        axes.legend()
