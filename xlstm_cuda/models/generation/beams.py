"""Beam search, with the scores of Hugging Face's generate(early_stopping="never")."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...nn.config import require
from .decoding import Step, is_any_of, reorder_state


class _Best:
    """The best ended sequence of each row: ids (B, N), filled up with `fill`, their number and score (B,)."""

    def __init__(self, batch: int, max_length: int, length_penalty: float, fill: int, like: Tensor) -> None:
        self.max_length, self.length_penalty = max_length, length_penalty
        self.ids = torch.full((batch, max_length), fill, dtype=torch.int64, device=like.device)
        self.length = torch.zeros(batch, dtype=torch.int64, device=like.device)
        self.score = torch.full((batch,), -torch.inf, dtype=like.dtype, device=like.device)

    def update(self, history: Tensor, total: Tensor, ends: Tensor) -> None:
        """Candidates history (B, K, n) with log-probabilities total (B, K); only those that end count."""
        length = history.shape[2]
        score, winner = (total / length**self.length_penalty).masked_fill(~ends, -torch.inf).max(1)
        better = score > self.score
        ids = history[torch.arange(len(winner), device=winner.device), winner]
        self.ids[:, :length] = torch.where(better[:, None], ids, self.ids[:, :length])
        self.length = torch.where(better, length, self.length)
        self.score = torch.where(better, score, self.score)

    def is_final(self, total: Tensor, length: int) -> Tensor:
        """0-d bool: no running beam, total (B, K) after `length` tokens, can end with a better score any more.

        A log-probability can only fall; divided by length**penalty it falls least at the longest length if the penalty
        is positive, at the next one if not.
        """
        best_length = self.max_length if self.length_penalty > 0 else length + 1
        return (self.score >= total.amax(1) / best_length**self.length_penalty).all()


def beam_search(
    step: Step,
    max_new_tokens: int,
    num_beams: int,
    length_penalty: float,
    eos: tuple[int, ...],
    look_every: int,
    logits: Tensor,
    state: Any,
) -> Tensor:
    """From logits (B, 1, V) and state of a prompt -> the best new ids (B, N), int64, N <= max_new_tokens.

    Of all continuations of the running beams by one token, the num_beams most likely ones count as ended where they
    end with one of `eos` or have max_new_tokens; the num_beams most likely ones that do not end so run on. An ended
    sequence of n tokens, the last one included, scores its log-probability / n**length_penalty. The search ends where
    no running beam can end better any more, looked at every `look_every` steps. Rows are filled up with eos[0].

    Raises ValueError for an id of `eos` outside of the vocabulary, RuntimeError for logits that are NaN.
    """
    batch, vocab_size = logits.shape[0], logits.shape[-1]
    for end in eos:
        require(0 <= end < vocab_size, f"generate: eos_id must be one of the model's {vocab_size} ids, got {end}")
    dtype = torch.promote_types(logits.dtype, torch.float32)
    total = torch.zeros(batch, 1, dtype=dtype, device=logits.device)  # log-probabilities of the running beams (B, K)
    history = torch.empty(batch, 1, 0, dtype=torch.int64, device=logits.device)
    best = _Best(batch, max_new_tokens, length_penalty, eos[0] if eos else 0, total)
    for length in range(1, max_new_tokens + 1):
        log_probs = logits[:, -1].to(dtype).log_softmax(-1).view(batch, history.shape[1], vocab_size)
        candidates = total[:, :, None] + log_probs  # (B, K, V)
        if eos or length == max_new_tokens:
            scores, _, extended = _top(candidates, history, num_beams)
            ends = torch.full_like(scores, length == max_new_tokens, dtype=torch.bool)
            best.update(extended, scores, ends | is_any_of(extended[:, :, -1], eos) if eos else ends)
        if length == max_new_tokens:
            break
        for end in eos:
            candidates[:, :, end] = -torch.inf
        beams = history.shape[1]
        total, parents, history = _top(candidates, history, num_beams)
        if eos and length % look_every == 0 and bool(best.is_final(total, length)):
            break
        rows = torch.arange(batch, device=parents.device)[:, None] * beams + parents
        logits, state = step(history[:, :, -1].reshape(-1, 1), reorder_state(state, rows.flatten()))
    if batch == 0:
        return best.ids
    shortest, longest = torch.stack(best.length.aminmax()).tolist()
    if shortest == 0:
        raise RuntimeError("generate: beam search found no sequence for a row: the model's logits are NaN")
    return best.ids[:, :longest]


def _top(candidates: Tensor, history: Tensor, num_beams: int) -> tuple[Tensor, Tensor, Tensor]:
    """The most likely of candidates (B, K, V): log-probabilities, parent beams, and ids (B, K', n + 1)."""
    vocab_size = candidates.shape[-1]
    flat = candidates.flatten(1)
    total, index = flat.topk(min(num_beams, flat.shape[1]))
    parents, token = index // vocab_size, index % vocab_size
    before = history.gather(1, parents[:, :, None].expand(-1, -1, history.shape[2]))
    return total, parents, torch.cat([before, token[:, :, None]], 2)
