"""Language models on top of the block stack."""

from .generation import generate
from .lm import xLSTMLMModel, xLSTMLMModelConfig

__all__ = ["generate", "xLSTMLMModel", "xLSTMLMModelConfig"]
