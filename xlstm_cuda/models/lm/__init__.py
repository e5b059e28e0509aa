"""xLSTMLMModel: the block stack between a token embedding and a linear head (arXiv 2405.04517)."""

from .config import xLSTMLMModelConfig
from .model import xLSTMLMModel

__all__ = ["xLSTMLMModel", "xLSTMLMModelConfig"]
