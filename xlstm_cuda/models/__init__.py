"""Language models on top of the block stack, and the architecture of xLSTM 7B."""

from .generation import generate
from .large import LargeState, xLSTMLarge, xLSTMLargeConfig
from .lm import xLSTMLMModel, xLSTMLMModelConfig

__all__ = ["LargeState", "generate", "xLSTMLMModel", "xLSTMLMModelConfig", "xLSTMLarge", "xLSTMLargeConfig"]
