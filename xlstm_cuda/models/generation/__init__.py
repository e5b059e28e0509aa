"""Generation from any model with `prefill` and `step`: token by token, with beams, in slots."""

from .cuda_graph import GraphedStep
from .decoding import reorder_state
from .drafts import model_draft, prompt_lookup
from .prefix_cache import PrefixCache
from .slots import SlotDecoder
from .token_by_token import generate, stream

__all__ = [
    "GraphedStep",
    "PrefixCache",
    "SlotDecoder",
    "generate",
    "model_draft",
    "prompt_lookup",
    "reorder_state",
    "stream",
]
