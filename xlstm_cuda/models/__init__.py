"""Language models on top of the block stack, xLSTMLarge, and generation from either."""

from .generation import GraphedStep, SlotDecoder, generate, reorder_state, stream
from .large import LargeState, xLSTMLarge, xLSTMLargeConfig
from .lm import xLSTMLMModel, xLSTMLMModelConfig

__all__ = [
    "GraphedStep",
    "LargeState",
    "SlotDecoder",
    "generate",
    "reorder_state",
    "stream",
    "xLSTMLMModel",
    "xLSTMLMModelConfig",
    "xLSTMLarge",
    "xLSTMLargeConfig",
]
