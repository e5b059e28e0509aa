"""Language models on sequences longer than those they were trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from ..lm.data import Corpus, DataError, held_out_batches
from ..lm.training import bits_per_byte
from .language import FULL, LSTM_LAYERS, Language, LanguageOptions, listed
from .models import LSTM, Transformer, xlstm
from .task import Models, Options, Results, Verdict, option


@dataclass(frozen=True)
class ExtrapolationOptions(LanguageOptions):
    steps: int = option(500, "training steps of each model")
    dim: int = option(48, "embedding dimension of xLSTM[1:1]; the other models have as many parameters")
    batch_size: int = option(8, "windows in a batch")
    seq_len: int = option(256, "bytes of a training window")
    test_length: int = option(4096, "bytes of a test window: a multiple of --seq-len")
    eval_windows: int = option(32, "held-out windows of that length")


class Extrapolation(Language):
    name = "extrapolation"
    title = "Windows longer than those of the training"
    claim = (
        "Beyond the length that it was trained on, xLSTM keeps a low loss. A Transformer does not (arXiv 2405.04517, "
        "section 4.3)."
    )
    setting = (
        "Bytes of Python code. The Transformer has sinusoidal positions, the LSTM one layer. The last range of the "
        "test windows is also read in pieces of the training length, each from the empty state. A model extrapolates "
        "where the long window, with all that it has seen before, is no worse than the pieces."
    )
    defaults: ClassVar[Options] = ExtrapolationOptions()
    full: ClassVar[Options] = replace(ExtrapolationOptions(), **FULL, test_length=16384, batch_size=32)
    options: ExtrapolationOptions

    def load(self) -> dict[str, Corpus]:
        length, piece = self.options.test_length, self.options.seq_len
        if length % piece or length == piece:
            raise ValueError(f"--test-length {length} must be a multiple of --seq-len {piece}, and not {piece} itself")
        corpora = super().load()
        found = len(corpora["text"].held_out)
        if found <= length:
            raise DataError(
                f"{found} bytes are held out of the data; test windows of {length} need {length + 1} (or --test-length)"
            )
        return corpora

    def models(self) -> Models:
        blocks, heads = self.options.blocks, self.options.heads
        backbones: dict[str, Callable[[int], nn.Module]] = {
            "xLSTM[1:0]": lambda dim: xlstm("1:0", dim, blocks, heads),
            "xLSTM[1:1]": lambda dim: xlstm("1:1", dim, blocks, heads),
            "LSTM": lambda dim: LSTM(dim, LSTM_LAYERS),
            "Transformer": lambda dim: Transformer(dim, blocks, heads),
        }
        return self.sized(backbones, "xLSTM[1:1]", self.options.dim)

    def ranges(self) -> dict[str, slice]:
        """Of positions in a test window: the training length, then twice as far each time."""
        bounds = [0, self.options.seq_len]
        while bounds[-1] < self.options.test_length:
            bounds.append(min(2 * bounds[-1], self.options.test_length))
        return {f"bits at {low}-{high}": slice(low, high) for low, high in pairwise(bounds)}

    @torch.no_grad()
    def results(self, model: nn.Module) -> Results:
        """Held-out bits per byte in each range of positions, and in pieces in the last one."""
        options = self.options
        long, pieces = [], []
        for inputs, targets in held_out_batches(self.corpora["text"], options.eval_windows, 4, options.test_length):
            long.append(self.nats(model, inputs, targets))
            cut = (part.reshape(-1, options.seq_len) for part in (inputs, targets))
            pieces.append(self.nats(model, *cut).reshape(inputs.shape))
        ranges = self.ranges()
        found: Results = {key: mean_bits(long, positions) for key, positions in ranges.items()}
        last = list(ranges)[-1]
        found["the same in pieces"] = mean_bits(pieces, ranges[last])
        found["test windows"] = sum(map(len, long))
        return found

    def verdict(self, results: Mapping[str, Results]) -> Verdict:
        last = list(self.ranges())[-1]
        bits = {name: result[last] for name, result in results.items()}
        keeps = [name for name, result in results.items() if result[last] <= result["the same in pieces"]]
        ours = {"xLSTM[1:0]", "xLSTM[1:1]"}
        better = max(bits[name] for name in ours) < bits["Transformer"]
        text = f"{', '.join(keeps) or 'no model'} no worse than in pieces; {last}: {listed(results, last)}"
        return Verdict(ours <= set(keeps) and "Transformer" not in keeps and better, text)

    def plot(self, axes: Axes, results: Mapping[str, Results]) -> None:
        ranges = self.ranges()
        ends = [positions.stop for positions in ranges.values()]
        for name, result in results.items():
            (line,) = axes.plot(ends, [result[key] for key in ranges], "o-", label=name)
            axes.plot(self.options.test_length, result["the same in pieces"], "x", color=line.get_color())
        axes.plot([], [], "x", color="grey", label="the last range in pieces")
        axes.axvline(self.options.seq_len, color="grey", linestyle="--", linewidth=0.8, label="training length")
        axes.set_xscale("log", base=2)
        axes.set_xticks(ends, [str(end) for end in ends])
        axes.set_xlabel("position in the window, end of the range")
        axes.set_ylabel("held-out bits per byte")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def mean_bits(nats: list[Tensor], positions: slice) -> float:
    """nats: (B, S) each."""
    return bits_per_byte(torch.cat(nats)[:, positions].mean().item())
