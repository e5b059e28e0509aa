"""Language models on top of the block stack, xLSTMLarge, and generation from either."""

from .cuda_graph import GraphedStep
from .decoding import reorder_state
from .generation import generate, stream
from .large import LargeState, xLSTMLarge, xLSTMLargeConfig
from .lm import xLSTMLMModel, xLSTMLMModelConfig
from .slots import SlotDecoder

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
