"""Text generation: the prompt at once, then token by token with the recurrent state, which does not grow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from ..nn.config import require


class Generator(Protocol):
    """What `generate` needs of a model, which must be an nn.Module."""

    def prefill(self, ids: Tensor) -> tuple[Tensor, Any]: ...

    def step(self, ids: Tensor, state: Any) -> tuple[Tensor, Any]: ...


@torch.no_grad()
def generate(
    model: Generator,
    prompt_ids: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    eos_id: int | None = None,
    callback: Callable[[Tensor], object] | None = None,
) -> Tensor:
    """Continues prompt_ids (B, S), S >= 1, by up to max_new_tokens: the ids (B, S + N), prompt included.

    temperature: divides the logits; 0 takes the most likely token (greedy).
    top_k, top_p: sample only from the k most likely tokens; from the fewest most likely tokens that together have a
        probability of at least p. With both, top_p applies to what top_k left.
    seed: of a generator of its own; None: torch's global one.
    eos_id: a row that produced it is filled up with it; generation ends when all rows have.
    callback: called with the new ids (B,) of every step.

    The model is in evaluation mode meanwhile, all its modules get their own mode back, also after an error.
    Raises ValueError for a prompt without tokens and for options out of range.
    """
    _check(prompt_ids, max_new_tokens, temperature, top_k, top_p)
    if max_new_tokens == 0:
        return prompt_ids
    rng = None if seed is None else torch.Generator(prompt_ids.device).manual_seed(seed)
    ids = [prompt_ids]
    ended = torch.zeros(prompt_ids.shape[0], dtype=torch.bool, device=prompt_ids.device)
    with _evaluation(model):
        logits, state = model.prefill(prompt_ids)
        for remaining in reversed(range(max_new_tokens)):
            new = _choose(logits[:, -1], temperature, top_k, top_p, rng).to(prompt_ids.dtype)
            if eos_id is not None:
                new = new.masked_fill(ended, eos_id)
                ended |= new == eos_id
            ids.append(new[:, None])
            if callback is not None:
                callback(new)
            if remaining == 0 or (eos_id is not None and bool(ended.all())):
                break
            logits, state = model.step(new[:, None], state)
    return torch.cat(ids, dim=1)


def _choose(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, rng: torch.Generator | None
) -> Tensor:
    """logits (B, V) -> ids (B,)."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is None and top_p is None:
        return torch.multinomial(logits.softmax(-1), 1, generator=rng).squeeze(-1)
    vocab_size = logits.shape[-1]
    logits, order = logits.topk(min(top_k or vocab_size, vocab_size))  # most likely first
    probabilities = logits.softmax(-1)
    if top_p is not None:
        before = probabilities.cumsum(-1) - probabilities  # of all that are more likely
        probabilities = probabilities.masked_fill(before >= top_p, 0)
    return order.gather(-1, torch.multinomial(probabilities, 1, generator=rng)).squeeze(-1)


@contextmanager
def _evaluation(model: Any) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _check(prompt_ids: Tensor, max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    shape = tuple(prompt_ids.shape)
    require(len(shape) == 2 and shape[1] > 0, f"generate: prompt_ids must have shape (B, S), S >= 1, got {shape}")
    require(max_new_tokens >= 0, f"generate: max_new_tokens must be >= 0, got {max_new_tokens}")
    require(temperature >= 0, f"generate: temperature must be >= 0, got {temperature}")
    require(top_k is None or top_k >= 1, f"generate: top_k must be None or >= 1, got {top_k}")
    require(top_p is None or 0 < top_p <= 1, f"generate: top_p must be None or in (0, 1], got {top_p}")
