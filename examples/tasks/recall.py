"""Multi-query associative recall (Arora et al. 2023): pairs of key and value, then keys whose values are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn
from torch.nn import functional as F

from .models import standard
from .task import Models, Options, Results, Task, Verdict, option, percent_bars

IGNORED = -100  # label of positions where nothing is asked
SOLVED, FAILED = 0.99, 0.9  # shares of right answers
ENOUGH = 0.995  # share at which a model may stop


@dataclass(frozen=True)
class RecallOptions(Options):
    steps: int = option(1500, "training steps of each model, fewer where a model has solved the task")
    batch_size: int = option(32, "sequences in a batch, also of the test")
    lr: float = option(5e-3, "peak learning rate of the xLSTM models")
    others_lr: float = option(2e-3, "peak learning rate of the LSTM and the Transformer")
    heads: int = option(2, "heads of each block")
    dim: int = option(64, "embedding dimension of the xLSTM models; the others have as many parameters")
    vocabulary: int = option(64, "tokens; the first half are keys, the second half values")
    pairs: int = option(12, "pairs of key and value to be remembered")
    length: int = option(48, "of a sequence; what the pairs and questions leave is filled with questions too")
    test_sequences: int = option(512, "number of test sequences")


class Recall(Task):
    name = "recall"
    title = "Multi-query associative recall"
    claim = (
        "The matrix memory of the mLSTM stores and finds pairs of key and value. It solves multi-query associative "
        "recall where an LSTM of the same size does not (arXiv 2405.04517, section 4.1 and appendix)."
    )
    setting = (
        "Pairs of key and value come first, then keys whose values are asked for, until the sequence is full. The "
        "paper has more pairs, longer sequences and a far larger vocabulary, and its questions lie further apart. "
        "xLSTM[0:1] has the same blocks without a matrix memory. The LSTM, two plain layers, did no better at the "
        "higher learning rates that were tried. A model stops early when it has solved the task. The others take all "
        "steps, which may be too few for them."
    )
    defaults: ClassVar[Options] = RecallOptions()
    full: ClassVar[Options] = replace(
        RecallOptions(), vocabulary=8192, pairs=96, length=512, dim=256, heads=4, batch_size=128, steps=20000, lr=2e-3
    )
    options: RecallOptions

    def __init__(self, options: RecallOptions, seed: int, device: torch.device) -> None:
        super().__init__(options, seed, device)
        if options.pairs > options.vocabulary // 2:
            raise ValueError(f"--pairs {options.pairs} needs a --vocabulary of at least {2 * options.pairs}")
        if options.length <= 2 * options.pairs:
            raise ValueError(f"--pairs {options.pairs} needs a --length of more than {2 * options.pairs}")

    def models(self) -> Models:
        vocabulary = self.options.vocabulary
        return standard(self.options, vocabulary, vocabulary, ("1:0", "1:1", "0:1"))

    def lr(self, name: str) -> float:
        return self.options.lr if name.startswith("xLSTM") else self.options.others_lr

    def sequences(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """ids and labels (count, length): pairs, then questions, keys of these pairs, labelled with their values."""
        options, half = self.options, self.options.vocabulary // 2
        keys = torch.rand(count, half, generator=rng).argsort(1)[:, : options.pairs]
        values = torch.randint(half, options.vocabulary, (count, options.pairs), generator=rng)
        asked = torch.randint(options.pairs, (count, options.length - 2 * options.pairs), generator=rng)
        ids = torch.cat([torch.stack([keys, values], 2).flatten(1), keys.gather(1, asked)], 1)
        labels = torch.full_like(ids, IGNORED)
        labels[:, 2 * options.pairs :] = values.gather(1, asked)
        return ids, labels

    def loss(self, model: nn.Module, step: int) -> Tensor:
        ids, labels = self.sequences(self.options.batch_size, self.rng(0, step))
        logits = model(ids.to(self.device)).flatten(0, 1)
        return F.cross_entropy(logits, labels.to(self.device).flatten(), ignore_index=IGNORED)

    def score(self, model: nn.Module) -> float:
        accuracy = self._accuracy(model, 2, 128)
        return 1.0 if accuracy >= ENOUGH else accuracy

    def results(self, model: nn.Module) -> Results:
        return {"accuracy": self._accuracy(model, 1, self.options.test_sequences)}

    @torch.no_grad()
    def _accuracy(self, model: nn.Module, stream: int, count: int) -> float:
        ids, labels = self.sequences(count, self.rng(stream))
        batches = ids.split(self.options.batch_size)
        right = torch.cat([model(batch.to(self.device)).argmax(-1).cpu() for batch in batches]) == labels
        return right[labels != IGNORED].float().mean().item()

    def verdict(self, results: Mapping[str, Results]) -> Verdict:
        shown = {name: result["accuracy"] for name, result in results.items()}
        holds = shown["xLSTM[1:0]"] >= SOLVED and shown["LSTM"] < FAILED
        numbers = ", ".join(f"{name} {value:.3f}" for name, value in shown.items())
        return Verdict(holds, f"share of right answers: {numbers}; chance {2 / self.options.vocabulary:.3f}")

    def plot(self, axes: Axes, results: Mapping[str, Results]) -> None:
        percent_bars(axes, results, "accuracy", "share of right answers")
