"""State tracking to length 2048, beside linear recurrent networks: Mamba-2 and Gated DeltaNet."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from .linear_rnns import BACKBONES
from .models import LSTM, SequenceModel, equally_large, xlstm
from .state_tracking import ModularArithmetic, ModularOptions, Parity, StateTracking, StateTrackingOptions
from .task import Models, Options

RATIOS = ("0:1", "1:1", "1:0")


class Comparison(StateTracking):
    """The models: xLSTM with and without memory mixing, an LSTM, and linear recurrent networks of the same size."""

    failing: ClassVar[tuple[str, ...]] = ("xLSTM[1:0]", "Mamba-2", "Gated DeltaNet")
    stretch: ClassVar[int] = 12  # what is right for twice the length need not be for fifty times
    setting = (
        "Small models, a short training on at most 40 tokens, a test on up to 2048. All models have the same number of "
        "parameters, learning rate and batches. Mamba-2 and Gated DeltaNet are plain PyTorch from their papers' "
        "equations, with their convolutions and initial values; xLSTM has no convolutions. Gated DeltaNet[-1,1] is the "
        "same with negative eigenvalues, for which parity is within reach in theory (arXiv 2411.12537); nothing is "
        "claimed of it here. A model stops early when it is sure and makes no mistake on sequences twelve times as "
        "long as those of training. One rate for all, no search: a model that fails here may be trained better by "
        "other means."
    )

    def models(self) -> Models:
        options = self.options

        def build(backbone: Callable[[int], nn.Module], width: int) -> nn.Module:
            return SequenceModel(self.tokens, width, self.answers, backbone(width))

        def backbones() -> dict[str, Callable[[int], nn.Module]]:
            found: dict[str, Callable[[int], nn.Module]] = {}
            for ratio in RATIOS:
                found[f"xLSTM[{ratio}]"] = partial(_xlstm, ratio, options.blocks, options.heads)
            found["LSTM"] = lambda width: LSTM(width, options.blocks)
            for name, backbone in BACKBONES.items():
                found[name] = partial(_of_width, backbone, options.blocks, options.heads)
            return found

        builders = {name: partial(build, backbone) for name, backbone in backbones().items()}
        return equally_large(builders, f"xLSTM[{RATIOS[0]}]", options.dim, options.heads)


def _xlstm(ratio: str, blocks: int, heads: int, width: int) -> nn.Module:
    return xlstm(ratio, width, blocks, heads, convolution=0)


def _of_width(backbone: Callable[[int, int, int], nn.Module], blocks: int, heads: int, width: int) -> nn.Module:
    return backbone(width, blocks, heads)


class LongParity(Comparison, Parity):
    name = "long-parity"
    title = "Parity to length 2048, beside Mamba-2 and Gated DeltaNet"
    claim = (
        "Memory mixing lets the sLSTM track state (arXiv 2405.04517, section 4.1), and linear recurrent networks whose "
        "transitions have no negative eigenvalues cannot do parity at all lengths (arXiv 2411.12537, theorem 1). "
        "xLSTM[0:1] and xLSTM[1:1] solve parity up to length 2048. xLSTM[1:0], Mamba-2 and Gated DeltaNet do not."
    )
    setting = Comparison.setting + (
        " Steps, rate and lengths are those of `parity`. Whether xLSTM[1:1] finds the solution depends on the seed and "
        "the number of steps: of other ones that were tried some ended at chance. xLSTM[0:1] found it each time."
    )
    defaults: ClassVar[Options] = StateTrackingOptions(test_length=2048, test_sequences=64)
    full: ClassVar[Options] = replace(Parity.full, test_length=2048)


class Permutations(Comparison):
    name = "permutations"
    title = "Products of permutations of three things (S3) to length 2048, beside Mamba-2 and Gated DeltaNet"
    claim = (
        "The word problem of the group S3 takes transitions that do not commute and have negative eigenvalues (arXiv "
        "2404.08819; arXiv 2411.12537, section 4), which memory mixing has. xLSTM[0:1] solves it up to length 2048. "
        "xLSTM[1:0], Mamba-2 and Gated DeltaNet do not."
    )
    setting = Comparison.setting + (
        " One head, so that all units of the sLSTM mix, and training begins with short sequences, as in "
        "cycle-navigation."
    )
    defaults: ClassVar[Options] = StateTrackingOptions(
        steps=4000, batch_size=32, lr=2e-2, heads=1, growth=0.5, test_length=2048, test_sequences=64
    )
    full: ClassVar[Options] = replace(StateTracking.full, heads=1, growth=0.5, test_length=2048)
    solvers: ClassVar[tuple[str, ...]] = ("xLSTM[0:1]",)
    tokens, answers = 6, 6

    def sequences(self, count: int, length: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """A token is a permutation, its label the product of all so far, the latest applied last."""
        ids = torch.randint(6, (count, length), generator=rng)
        labels, product = torch.empty_like(ids), torch.zeros(count, dtype=torch.int64)
        for t in range(length):
            product = PRODUCTS[ids[:, t], product]
            labels[:, t] = product
        return ids, labels


S3 = list(itertools.permutations(range(3)))  # the first one changes nothing
PRODUCTS = torch.tensor([[S3.index((a[b[0]], a[b[1]], a[b[2]])) for b in S3] for a in S3])  # first b, then a


class LongArithmetic(Comparison, ModularArithmetic):
    name = "long-arithmetic"
    title = "Modular arithmetic to length 2048, beside Mamba-2 and Gated DeltaNet"
    claim = (
        "Memory mixing lets the sLSTM track state (arXiv 2405.04517, section 4.1 and figure 4). xLSTM[0:1] evaluates "
        "expressions of a residue ring up to length 2048. xLSTM[1:0], Mamba-2 and Gated DeltaNet do not."
    )
    setting = Comparison.setting + (
        " Modulo three, one head, and training begins with short sequences, as in modular-arithmetic."
    )
    defaults: ClassVar[Options] = ModularOptions(steps=6000, test_length=2048, test_sequences=64)
    full: ClassVar[Options] = replace(ModularArithmetic.full, test_length=2048)
    solvers: ClassVar[tuple[str, ...]] = ("xLSTM[0:1]",)
