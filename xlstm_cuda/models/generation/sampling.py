"""The choice of the next token from its logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...nn.config import require
from .decoding import check_count


class Sampling(NamedTuple):
    """temperature: divides the logits; 0 takes the most likely token (greedy).
    top_k, top_p: sample only from the k most likely tokens; from the fewest most likely tokens that together have a
        probability of at least p. With both, top_p applies to what top_k left.
    rng: None is torch's global generator.
    """

    temperature: float
    top_k: int | None = None
    top_p: float | None = None
    rng: torch.Generator | None = None

    def check(self, op: str) -> None:
        """Raises ValueError for options out of range, TypeError for a top_k that is no integer."""
        temperature, top_k, top_p, _ = self
        require(temperature >= 0, f"{op}: temperature must be >= 0, got {temperature}")
        check_count(f"{op}: top_k", top_k, 1, optional=True)
        require(top_p is None or 0 < top_p <= 1, f"{op}: top_p must be None or in (0, 1], got {top_p}")

    def choose(self, logits: Tensor) -> Tensor:
        """logits (B, V) -> ids (B,)."""
        if self.temperature == 0:
            return logits.argmax(-1)
        # Less the largest: no temperature, however small, makes anything but zeros and -inf of them.
        logits = (logits - logits.amax(-1, keepdim=True)).float()
        logits = logits / max(self.temperature, torch.finfo(torch.float32).tiny)
        if self.top_k is None and self.top_p is None:
            return torch.multinomial(logits.softmax(-1), 1, generator=self.rng).squeeze(-1)
        vocab_size = logits.shape[-1]
        logits, order = logits.topk(min(self.top_k or vocab_size, vocab_size))  # most likely first
        probabilities = logits.softmax(-1)
        if self.top_p is not None:
            before = probabilities.cumsum(-1) - probabilities  # of all that are more likely
            probabilities = probabilities.masked_fill(before >= self.top_p, 0)
        return order.gather(-1, torch.multinomial(probabilities, 1, generator=self.rng)).squeeze(-1)


def seeded(seed: int | None, device: torch.device) -> torch.Generator | None:
    """A generator of its own; None, torch's global one, for None."""
    return None if seed is None else torch.Generator(device).manual_seed(seed)
