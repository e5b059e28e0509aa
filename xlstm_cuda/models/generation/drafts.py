"""Guesses of the next tokens, for speculative decoding: from the text itself, or from a smaller model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

from ..._checks import MAX_STEP
from ...nn.config import require
from .decoding import PREFILL_CHUNK_SIZE, Generator, check_count, evaluation
from .prefix_cache import PrefixCache

Draft: TypeAlias = Callable[[tuple[int, ...], int], Sequence[int]]  # ids so far, a number -> a guess of at most so many


def check_draft(op: str, draft: Any, window: Any) -> None:
    """Raises TypeError unless draft is None or callable, ValueError unless 2 <= window <= 16."""
    if draft is not None and not callable(draft):
        raise TypeError(f"{op}: draft must be None or callable, got {type(draft).__name__}")
    check_count(f"{op}: window", window, 2)
    require(window <= MAX_STEP, f"{op}: window must be at most {MAX_STEP}, got {window}")


def prompt_lookup(ngram: int = 3) -> Draft:
    """A draft without a model: what followed the last `ngram` ids where they, or the last few of them, stood before.

    It guesses right where a text repeats parts of itself: code, quotations, summaries. Raises ValueError for ngram < 1.
    """
    check_count("prompt_lookup: ngram", ngram, 1)

    def draft(ids: tuple[int, ...], count: int) -> Sequence[int]:
        for length in range(min(ngram, len(ids) - 1), 0, -1):
            last = ids[-length:]
            for start in range(len(ids) - length - 1, -1, -1):
                if ids[start : start + length] == last:
                    return ids[start + length : start + length + count]
        return ()

    return draft


def model_draft(model: Generator, max_bytes: int = 1 << 28) -> Draft:
    """The greedy tokens of a smaller model with the same vocabulary.

    Its states are kept by the ids before them, in at most max_bytes: rows of a batch may share it.
    """
    cache = PrefixCache(max_bytes, interval=None)
    like = next(iter(model.parameters()))  # type: ignore[attr-defined]

    @torch.no_grad()
    def draft(ids: tuple[int, ...], count: int) -> Sequence[int]:
        with evaluation(model):
            logits, state = cache.prefill(model, torch.tensor([ids], device=like.device), PREFILL_CHUNK_SIZE)
            found = [int(logits[0, -1].argmax())]
            while len(found) < count:
                logits, state = model.step(torch.tensor([found[-1:]], device=like.device), state)
                cache.store((*ids, *found), state, logits)
                found.append(int(logits[0, -1].argmax()))
        return found

    return draft
