"""Text generation: the prompt in chunks, then token by token with the recurrent state, which does not grow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...nn.config import require
from .beams import beam_search
from .cuda_graph import GraphedStep, make_step
from .decoding import (
    LOOK_EVERY,
    PREFILL_CHUNK_SIZE,
    EosId,
    Generator,
    Prompt,
    Step,
    check_count,
    eos_ids,
    evaluation,
    is_any_of,
    padded_prompt,
)
from .drafts import Draft, check_draft
from .sampling import Sampling, seeded
from .speculation import Speculation, decode


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
    eos_id: EosId = None,
    callback: Callable[[Tensor], object] | None = None,
    attention_mask: Tensor | None = None,
    state: Any = None,
    return_state: bool = False,
    prefill_chunk_size: int | None = PREFILL_CHUNK_SIZE,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    cuda_graph: bool | str = "auto",
    draft: Draft | None = None,
    window: int = 8,
) -> Tensor | tuple[Tensor, Any]:
    """Continues prompt_ids (B, S), S >= 1, by up to max_new_tokens: the ids (B, S + N), prompt included.

    temperature: divides the logits; 0 takes the most likely token (greedy).
    top_k, top_p: sample only from the k most likely tokens; from the fewest most likely tokens that together have a
        probability of at least p. With both, top_p applies to what top_k left.
    seed: of a generator of its own; None: torch's global one.
    eos_id: >= 0, or a list of such ids; a row that produced one of them is filled up with the first of the list;
        generation ends when all rows have.
    callback: called with the new ids (B,) of every step.
    attention_mask: (B, S) of 0 and 1, zeros for padding at the left. Padding leaves no trace: every row goes on as it
        would alone and without padding.
    state: of what comes before the prompt, None for nothing; excludes padding.
    return_state: also return the state that has consumed all ids but the last, which is not fed to the model any more:
        generate(model, ids[:, -1:], more, state=state) goes on, and its first column repeats the last one of `ids`.
    prefill_chunk_size: tokens of a row that go through the model at once, None: all of the prompt. Bounds the memory
        of a long prompt, and changes only rounding.
    num_beams: more than 1: beam search, the best sequence of each row. Needs temperature=0; excludes callback and
        return_state.
    length_penalty: beams are compared by log-probability / n**length_penalty, n new tokens, eos_id included.
    cuda_graph: record the step as a CUDA graph, see GraphedStep. "auto": on a GPU, if there are at least 32 new tokens,
        with a warning where that fails. True raises instead.
    draft: speculative decoding (arXiv 2211.17192): a function of the ids of a row so far, a tuple, and a number, that
        guesses at most so many next ids: `prompt_lookup`, `model_draft` of a smaller model, or your own. Of a guess
        those ids are kept that the model chooses too, so that greedy tokens are the same, and samples have the same
        distribution. Excludes num_beams, callback and return_state.
    window: 2 to 16: ids of a row that go through the model at once with a draft.

    Without a callback and return_state, it is only looked every eighth step on a GPU whether all rows have ended; what
    was too much is dropped.

    The model is in evaluation mode meanwhile, all its modules get their own mode back, also after an error.
    Raises ValueError for a prompt without tokens, for options out of range and for those that exclude each other,
    TypeError for what is no tensor or no integer, RuntimeError where beam search or sampling meets NaN in the logits.
    """
    prompt = padded_prompt(prompt_ids, attention_mask, state, prefill_chunk_size)
    sampling = Sampling(temperature, top_k, top_p, seeded(seed, prompt_ids.device))
    eos = eos_ids("generate", eos_id)
    _check(max_new_tokens, sampling)
    watched = callback is not None or return_state
    _check_beams(num_beams, max_new_tokens, length_penalty, temperature, watched)
    require(max_new_tokens > 0 or not return_state, "generate: return_state needs max_new_tokens >= 1")
    check_draft("generate", draft, window)
    require(draft is None or (num_beams == 1 and not watched), f"generate: draft excludes {_NOT_WITH_A_DRAFT}")
    step = make_step(model, prompt_ids.device, cuda_graph, max_new_tokens)
    if max_new_tokens == 0:
        return prompt_ids.clone()
    look_every = 1 if watched else LOOK_EVERY.get(prompt_ids.device.type, 1)
    with evaluation(model):
        if num_beams > 1:
            search = partial(beam_search, step, max_new_tokens, num_beams, length_penalty, eos, look_every)
            best = search(*prompt.prefill(model))
            return torch.cat([prompt_ids, best.to(prompt_ids.dtype)], 1)
        if draft is not None:
            recorded = step if isinstance(step, GraphedStep) else None
            speculation = Speculation(model, draft, window, recorded)
            new_ids = partial(decode, speculation, sampling, eos, _without_padding(prompt), max_new_tokens, prompt_ids)
            return torch.cat([prompt_ids, _filled_up(new_ids(*prompt.prefill(model)), eos, prompt_ids)], 1)
        columns = []
        columns_of = partial(_decode, step, max_new_tokens, sampling, eos, prompt_ids.dtype, look_every)
        for new, state_before in columns_of(*prompt.prefill(model)):  # noqa: B007
            columns.append(new)
            if callback is not None:
                callback(new.clone())  # who changes it does not change the result
    ids = torch.cat([prompt_ids, _without_surplus(torch.stack(columns, 1), eos)], 1)
    return (ids, state_before) if return_state else ids


def stream(
    model: Generator,
    prompt_ids: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    eos_id: EosId = None,
    attention_mask: Tensor | None = None,
    state: Any = None,
    prefill_chunk_size: int | None = PREFILL_CHUNK_SIZE,
    cuda_graph: bool | str = "auto",
) -> Iterator[Tensor]:
    """Yields the new ids (B,) of every step, the columns that `generate` appends to the prompt. Options: see there.

    The model is in evaluation mode while a token is computed, and has its own modes whenever the caller runs: streams
    may be interleaved, and left at any token. Raises at once what `generate` raises for its options.
    """
    prompt = padded_prompt(prompt_ids, attention_mask, state, prefill_chunk_size)
    sampling = Sampling(temperature, top_k, top_p, seeded(seed, prompt_ids.device))
    eos = eos_ids("generate", eos_id)
    _check(max_new_tokens, sampling)
    step = make_step(model, prompt_ids.device, cuda_graph, max_new_tokens)
    return _stream(model, prompt, step, max_new_tokens, sampling, eos)


@torch.no_grad()
def _stream(
    model: Generator, prompt: Prompt, step: Step, max_new_tokens: int, sampling: Sampling, eos: tuple[int, ...]
) -> Iterator[Tensor]:
    if max_new_tokens == 0:
        return
    with evaluation(model):
        logits, state = prompt.prefill(model)
    steps = _decode(step, max_new_tokens, sampling, eos, prompt.ids.dtype, 1, logits, state)
    while True:
        with evaluation(model):  # not across the yield: another stream, or training, may run there
            found = next(steps, None)
        if found is None:
            return
        yield found[0].clone()  # who changes it does not change what follows


def _decode(
    step: Step,
    max_new_tokens: int,
    sampling: Sampling,
    eos: tuple[int, ...],
    dtype: torch.dtype,
    look_every: int,
    logits: Tensor,
    state: Any,
) -> Iterator[tuple[Tensor, Any]]:
    """From a prompt's logits (B, 1, V) and state: the new ids (B,) of every step, and the state before them."""
    ended = torch.zeros(logits.shape[0], dtype=torch.bool, device=logits.device)
    for count in range(1, max_new_tokens + 1):
        new = sampling.choose(logits[:, -1]).to(dtype)
        if eos:
            new = new.masked_fill(ended, eos[0])
            ended |= is_any_of(new, eos)
        yield new, state
        if count == max_new_tokens or (eos and count % look_every == 0 and bool(ended.all())):
            return
        logits, state = step(new[:, None], state)


def _without_surplus(new: Tensor, eos: tuple[int, ...]) -> Tensor:
    """new (B, N) without the columns after the one in which the last row ended."""
    if not eos:
        return new
    running = (~is_any_of(new, eos)).cumprod(1).any(0)  # by column: a row has not ended yet
    return new[:, : int(running.sum()) + 1]


def _without_padding(prompt: Prompt) -> list[list[int]]:
    """The ids of each row, from where it begins."""
    first = [0] * len(prompt.ids) if prompt.reset is None else prompt.reset.int().argmax(1).tolist()
    return [ids[start:] for ids, start in zip(prompt.ids.tolist(), first, strict=True)]


def _filled_up(rows: list[list[int]], eos: tuple[int, ...], like: Tensor) -> Tensor:
    """(B, N): rows that ended earlier are filled up with eos[0]."""
    longest = max(map(len, rows), default=0)  # no rows, no columns
    found = [row + [eos[0]] * (longest - len(row)) if len(row) < longest else row for row in rows]
    return like.new_tensor(found).view(len(rows), longest)


_NOT_WITH_A_DRAFT = "num_beams, callback and return_state: rows are not equally far"


def _check(max_new_tokens: int, sampling: Sampling) -> None:
    check_count("generate: max_new_tokens", max_new_tokens, 0)
    sampling.check("generate")


def _check_beams(num_beams: int, max_new_tokens: int, length_penalty: float, temperature: float, watched: bool) -> None:
    check_count("generate: num_beams", num_beams, 1)
    if num_beams > 1:
        digits = abs(length_penalty) * math.log10(max(max_new_tokens, 1))
        require(
            math.isfinite(length_penalty) and digits <= 30,  # float32 scores hold no more
            "generate: length_penalty must be finite, and max_new_tokens**length_penalty between 1e-30 and 1e30, got "
            f"{length_penalty}",
        )
        require(temperature == 0, "generate: num_beams > 1 needs temperature=0: beam search does not sample")
        require(not watched, "generate: num_beams > 1 excludes callback and return_state: the best beam is known last")
