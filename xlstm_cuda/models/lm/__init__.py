"""xLSTMLMModel: the block stack between a token embedding and a linear head (arXiv 2405.04517)."""

from .model import xLSTMLMModel, xLSTMLMModelConfig

__all__ = ["xLSTMLMModel", "xLSTMLMModelConfig"]
