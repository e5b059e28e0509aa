"""ListOps (Nangia and Bowman 2018): nested lists of digits, [MAX 2 9 [MIN 4 7 ] 0 ], whose value is asked for."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..lm.options import fraction
from .classification import HOW_JUDGED, Classification, ClassificationOptions, Examples, accuracy
from .task import Options, Results, option

OPERATORS: dict[str, Callable[[list[int]], int]] = {
    "[MAX": max,
    "[MIN": min,
    "[MED": lambda values: int(statistics.median(values)),
    "[SM": lambda values: sum(values) % 10,
}
TOKENS = (*"0123456789", *OPERATORS, "]", "<pad>")
_IDS = {token: index for index, token in enumerate(TOKENS)}
SHORTEST = 4  # an operator, two digits, a bracket
MAX_TRIES = 1000  # expressions drawn until one is of the right length
_TRAINING, _TEST, _VALIDATION, _BASELINE = range(4)  # streams of random numbers


@dataclass(frozen=True)
class ListOpsOptions(ClassificationOptions):
    steps: int = option(1000, "training steps of each model, fewer where a model has solved the task")
    lr: float = option(1e-2, "peak learning rate of xLSTM and LSTM")
    transformer_lr: float = option(5e-3, "peak learning rate of the Transformer, instead of --lr")
    dim: int = option(64, "embedding dimension of the xLSTM models; the others have as many parameters")
    max_depth: int = option(2, "levels of lists; 1 for lists of digits only")
    max_args: int = option(4, "most arguments of an operator; it has at least two")
    nesting: float = option(0.3, "probability that an argument is a list", fraction)
    min_length: int = option(8, "shortest expression, in tokens")
    max_length: int = option(24, "longest expression, in tokens")
    test_sequences: int = option(2000, "number of test sequences")


class ListOps(Classification):
    name = "listops"
    title = "ListOps: the value of nested lists of digits"
    claim = (
        "xLSTM is consistently strong on the tasks of the Long Range Arena, ListOps among them "
        "(arXiv 2405.04517, section 4.1)."
    )
    setting = (
        "Every batch is freshly drawn. The value is asked for at the last bracket only. The default expressions are "
        "far shorter and shallower than those of the Long Range Arena. --full draws with its lengths, depth and number "
        "of arguments. As there, values are not balanced: 'first operator' is the best guess from the first token. "
        + HOW_JUDGED
    )
    defaults: ClassVar[Options] = ListOpsOptions()
    full: ClassVar[Options] = replace(
        ListOpsOptions(),
        steps=20000,
        batch_size=32,
        lr=1e-3,
        transformer_lr=5e-4,
        dim=128,
        blocks=6,
        max_depth=9,  # the Long Range Arena counts the digits as one more level
        max_args=10,
        nesting=0.25,
        min_length=500,
        max_length=2000,
    )
    inputs = len(TOKENS)
    floor = "first operator"
    options: ListOpsOptions

    def __init__(self, options: ListOpsOptions, seed: int, device: torch.device) -> None:
        super().__init__(options, seed, device)
        if options.max_args < 2:
            raise ValueError(f"--max-args {options.max_args} must be at least 2")
        if options.max_length < max(SHORTEST, options.min_length):
            least = max(SHORTEST, options.min_length)
            raise ValueError(f"--max-length {options.max_length} must be at least {least}")
        self.validation = self.draw(_VALIDATION, 0, 256)
        self.test = self.draw(_TEST, 0, options.test_sequences)

    def batch(self, step: int) -> Examples:
        return self.draw(_TRAINING, step, self.options.batch_size)

    def draw(self, stream: int, index: int, count: int) -> Examples:
        """x: ids (count, S), S the longest of these expressions."""
        rng = random.Random(int(torch.randint(2**62, (1,), generator=self.rng(stream, index))))
        drawn = [self.expression(rng) for _ in range(count)]
        ids = [torch.tensor(expression) for expression, _ in drawn]
        x = pad_sequence(ids, batch_first=True, padding_value=_IDS["<pad>"])
        return Examples(x, torch.tensor([len(row) for row in ids]), torch.tensor([value for _, value in drawn]))

    def expression(self, rng: random.Random) -> tuple[list[int], int]:
        """Token ids and the value of an expression of --min-length to --max-length tokens."""
        options = self.options
        for _ in range(MAX_TRIES):
            with suppress(_TooLong, RecursionError):
                ids, value = self._operation(rng, options.max_depth, options.max_length)
                if len(ids) >= options.min_length:
                    return ids, value
        raise ValueError(
            f"expressions of {options.min_length} to {options.max_length} tokens (--min-length, --max-length) are too "
            f"rare with --max-depth {options.max_depth}, --max-args {options.max_args} and --nesting {options.nesting}"
        )

    def _operation(self, rng: random.Random, depth: int, room: int) -> tuple[list[int], int]:
        """An operator with its arguments, of at most `depth` levels and `room` tokens."""
        operator = rng.choice(list(OPERATORS))
        ids, values = [_IDS[operator]], []
        for _ in range(rng.randint(2, self.options.max_args)):
            value = rng.randrange(10)
            argument = [value]
            if depth > 1 and rng.random() < self.options.nesting:
                argument, value = self._operation(rng, depth - 1, room - len(ids))
            ids += argument
            values.append(value)
            if len(ids) >= room:
                raise _TooLong
        return [*ids, _IDS["]"]], OPERATORS[operator](values)

    def measured(self, predictions: Tensor) -> Results:
        """by_operator: for the outermost operator."""
        first, labels = self.test.x[:, 0], self.test.labels
        outermost = {name: first == _IDS[name] for name in OPERATORS}
        by_operator = {name: accuracy(predictions[rows], labels[rows]) for name, rows in outermost.items() if any(rows)}
        return {**super().measured(predictions), "by_operator": by_operator}

    def baselines(self) -> dict[str, Results]:
        """The most frequent value, of all expressions and of those with the same first operator."""
        known = self.draw(_BASELINE, 0, 5000)
        usual = known.labels.mode().values
        guesses = {
            operator: known.labels[known.x[:, 0] == operator].mode().values
            for operator in known.x[:, 0].unique().tolist()
        }
        by_operator = torch.stack([guesses.get(operator, usual) for operator in self.test.x[:, 0].tolist()])
        return {
            "majority": self.measured(usual.expand(len(self.test.labels))),
            "first operator": self.measured(by_operator),
        }

    def plot(self, axes: Axes, results: Mapping[str, Results]) -> None:
        """Accuracy of every model for each outermost operator."""
        width = 0.8 / len(results)
        for index, (name, result) in enumerate(results.items()):
            groups = {"all": result, **result["by_operator"]}
            heights, errors = ([group[key] for group in groups.values()] for key in ("accuracy", "standard error"))
            places = np.arange(len(groups)) + (index + 0.5) * width - 0.4
            axes.bar(places, heights, width, yerr=errors, label=name)
            axes.set_xticks(range(len(groups)), [group.removeprefix("[") for group in groups])
        axes.set_xlabel("outermost operator")
        axes.set_ylabel("accuracy on test sequences, with standard error")
        axes.set_ylim(0, 1.05)
        axes.legend()


class _TooLong(Exception):
    """An expression has outgrown --max-length."""
