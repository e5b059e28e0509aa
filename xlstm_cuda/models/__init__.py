"""Language models on top of the block stack, xLSTMLarge, and generation from either."""

import sys
from importlib import import_module

from . import weights
from .generation import (
    GraphedStep,
    PrefixCache,
    SlotDecoder,
    generate,
    model_draft,
    prompt_lookup,
    reorder_state,
    stream,
)
from .large import LargeState, xLSTMLarge, xLSTMLargeConfig
from .lm import xLSTMLMModel, xLSTMLMModelConfig
from .vision import VisionLSTM, VisionLSTM2

__all__ = [
    "GraphedStep",
    "LargeState",
    "PrefixCache",
    "SlotDecoder",
    "VisionLSTM",
    "VisionLSTM2",
    "generate",
    "model_draft",
    "prompt_lookup",
    "reorder_state",
    "stream",
    "weights",
    "xLSTMLMModel",
    "xLSTMLMModelConfig",
    "xLSTMLarge",
    "xLSTMLargeConfig",
]

# The former places of these modules, for imports and pickles that name them.
for _name in ("beams", "cuda_graph", "decoding", "sampling", "slots"):
    globals()[_name] = sys.modules[f"{__name__}.{_name}"] = import_module(f"{__name__}.generation.{_name}")
