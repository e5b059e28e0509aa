"""Handwritten digits, 8x8 pixels, read pixel by pixel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..lm.data import DataError
from .classification import HOW_JUDGED, Classification, ClassificationOptions, Examples
from .task import Options, Results, option

PIXELS = 64
TEST, VALIDATION = 600, 150  # images that are never trained on
_TRAINING, _SPLIT, _ORDER = range(3)  # streams of random numbers


def pixel_order(text: str) -> str:
    if text not in ("rows", "random"):
        raise ValueError
    return text


@dataclass(frozen=True)
class DigitsOptions(ClassificationOptions):
    steps: int = option(1000, "training steps of each model, fewer where a model has solved the task")
    batch_size: int = option(32, "sequences in a batch")
    lr: float = option(6e-3, "peak learning rate of xLSTM and LSTM")
    dim: int = option(48, "embedding dimension of the xLSTM models; the others have as many parameters")
    order: str = option("rows", "of the pixels: rows, or random, the same for all images", pixel_order)


class Digits(Classification):
    name = "digits"
    title = "Digits: images read pixel by pixel"
    claim = (
        "xLSTM is consistently strong on the tasks of the Long Range Arena, images read pixel by pixel among them "
        "(arXiv 2405.04517, section 4.1)."
    )
    setting = (
        "The 8x8 digits that come with scikit-learn, one pixel a step, in place of the larger images of the Long Range "
        "Arena. They are few, so that generalizing from few is measured too. The logistic regression, for scale, sees "
        "all pixels at once. " + HOW_JUDGED
    )
    defaults: ClassVar[Options] = DigitsOptions()
    full: ClassVar[Options] = replace(DigitsOptions(), steps=5000, batch_size=128, dim=128, lr=2e-3, weight_decay=0.1)
    inputs = 1
    features = True
    floor = "majority"
    options: DigitsOptions

    def __init__(self, options: DigitsOptions, seed: int, device: torch.device) -> None:
        super().__init__(options, seed, device)
        x, labels = load_images()
        if options.order == "random":
            x = x[:, torch.randperm(PIXELS, generator=self.rng(_ORDER))]
        images = Examples(x, torch.full_like(labels, PIXELS), labels)
        rows = torch.randperm(len(x), generator=self.rng(_SPLIT))
        self.test = _chosen(images, rows[:TEST])
        self.validation = _chosen(images, rows[TEST : TEST + VALIDATION])
        self.training = _chosen(images, rows[TEST + VALIDATION :])

    def batch(self, step: int) -> Examples:
        """Drawn with replacement, so that a batch follows from its step alone."""
        count = len(self.training.labels)
        rows = torch.randint(count, (self.options.batch_size,), generator=self.rng(_TRAINING, step))
        return _chosen(self.training, rows)

    def baselines(self) -> dict[str, Results]:
        from sklearn.linear_model import LogisticRegression

        regression = LogisticRegression(max_iter=1000)
        regression.fit(self.training.x.flatten(1).numpy(), self.training.labels.numpy())
        predicted = torch.from_numpy(regression.predict(self.test.x.flatten(1).numpy()))
        majority = self.training.labels.mode().values.expand(TEST)
        return {"logistic regression": self.measured(predicted), "majority": self.measured(majority)}


def _chosen(examples: Examples, rows: Tensor) -> Examples:
    return Examples(*(part[rows] for part in examples))


def load_images() -> tuple[Tensor, Tensor]:
    """Pixels (N, 64, 1) between -1 and 1, and labels (N,)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError("digits needs the package scikit-learn: pip install 'xlstm-cuda[tasks]'") from None
    pixels, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(pixels).float() / 8 - 1
    return x[:, :, None], torch.from_numpy(labels)
