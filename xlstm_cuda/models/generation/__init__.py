"""Generation from any model with `prefill` and `step`: token by token, with beams, in slots."""

from .cuda_graph import GraphedStep
from .decoding import reorder_state
from .slots import SlotDecoder
from .token_by_token import generate, stream

__all__ = ["GraphedStep", "SlotDecoder", "generate", "reorder_state", "stream"]
