"""Continuous batching: requests that come and go in the rows of one batched state."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from ...nn.config import require
from .decoding import (
    PREFILL_CHUNK_SIZE,
    EosId,
    Generator,
    Prompt,
    check_count,
    check_tensor,
    eos_ids,
    evaluation,
    reorder_state,
)
from .drafts import Draft, check_draft
from .prefix_cache import PrefixCache, row_of
from .sampling import Sampling, seeded
from .speculation import Row, Speculation, Window, until_end


@dataclass
class _Request:
    number: int
    prompt: Prompt
    max_new_tokens: int
    row: Row = field(init=False)

    def __post_init__(self) -> None:
        ids = self.prompt.ids[0].tolist()
        self.row = Row(ids, len(ids))

    @property
    def wanted(self) -> int:
        """New ids that it still takes."""
        return self.prompt.ids.shape[1] + self.max_new_tokens - len(self.row.ids)


class SlotDecoder:
    """Decodes up to `capacity` requests at once; others wait until one has ended.

    A request ends with eos_id or its max_new_tokens; its slot is free in the next step. Only rows with a request
    are computed. A request's greedy tokens are those of `generate` on it alone, whatever runs beside it; samples depend
    on the order of all requests.

    temperature, top_k, top_p, seed, eos_id, prefill_chunk_size: see generate; for all requests.
    draft, window: speculative decoding, see generate: a step may give a request several tokens.
    prefix_cache: prompts begin behind the longest prefix that it knows, and it keeps their states.
    Raises ValueError for options out of range, TypeError for counts that are no integers.
    """

    def __init__(
        self,
        model: Generator,
        capacity: int,
        *,
        eos_id: EosId = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        prefill_chunk_size: int | None = PREFILL_CHUNK_SIZE,
        draft: Draft | None = None,
        window: int = 8,
        prefix_cache: PrefixCache | None = None,
    ) -> None:
        check_count("SlotDecoder: capacity", capacity, 1)
        check_count("SlotDecoder: prefill_chunk_size", prefill_chunk_size, 1, optional=True)
        check_draft("SlotDecoder", draft, window)
        if not (prefix_cache is None or isinstance(prefix_cache, PrefixCache)):
            given = type(prefix_cache).__name__
            raise TypeError(f"SlotDecoder: prefix_cache must be None or a PrefixCache, got {given}")
        self._model = model
        self._speculation = Speculation(model, draft, window)
        self._cache = prefix_cache
        self._capacity = capacity
        self._eos = eos_ids("SlotDecoder", eos_id)
        self._seed = seed
        self._sampling = Sampling(temperature, top_k, top_p)
        self._sampling.check("SlotDecoder")
        self._chunk_size = prefill_chunk_size
        self._submitted = 0
        self._waiting: deque[_Request] = deque()
        self._active: dict[int, _Request] = {}  # by slot
        self._state: Any = None  # of all slots; allocated by the first prompt
        self._first_logits: dict[int, Tensor] = {}  # (1, V) by slot, of prompts whose first token is still to come
        self._results: dict[int, Tensor] = {}

    def submit(self, prompt_ids: Tensor, max_new_tokens: int) -> int:
        """Queues prompt_ids (S,), S >= 1, to be continued by up to max_new_tokens. Returns the request's number.

        Raises ValueError for a prompt without tokens and a negative max_new_tokens, TypeError for a prompt that is not
        a tensor of integers.
        """
        check_tensor("submit: prompt_ids", prompt_ids)
        shape = tuple(prompt_ids.shape)
        require(len(shape) == 1 and shape[0] > 0, f"submit: prompt_ids must have shape (S,), S >= 1, got {shape}")
        if prompt_ids.is_floating_point():  # the step that it would fail in is also the others'
            raise TypeError(f"submit: prompt_ids must hold integers, got {prompt_ids.dtype}")
        check_count("submit: max_new_tokens", max_new_tokens, 0)
        number = self._submitted
        if number == 0:  # the device is known
            self._sampling = self._sampling._replace(rng=seeded(self._seed, prompt_ids.device))
        self._submitted += 1
        prompt_ids = prompt_ids.clone()  # it is read later, the caller may reuse the memory
        request = _Request(number, Prompt(prompt_ids[None], chunk_size=self._chunk_size), max_new_tokens)
        if max_new_tokens == 0:
            self._finish(request)
        else:
            self._waiting.append(request)
        return number

    @torch.no_grad()
    def step(self) -> dict[int, list[int]]:
        """One token more for every active request, with a draft one or more: {its number: its new tokens}.

        Empty where no request is left. After an error the active requests are as they were before, and the next step
        goes on with them; a request whose prompt raised it is dropped.
        """
        with evaluation(self._model):
            self._admit()
            if not self._active:
                return {}
            stepped = [slot for slot in self._active if slot not in self._first_logits]
            verified = self._verify(stepped) if stepped else None
        logits = list(self._first_logits.values()) if verified is None else [verified[1], *self._first_logits.values()]
        tokens = self._sampling.choose(torch.cat(logits)).tolist()
        new: dict[int, list[int]] = {}  # by slot
        if verified is not None:  # only now: a step whose choice failed is repeated
            new |= self._accept(stepped, tokens, verified)
        for slot, token in zip(self._first_logits, tokens[len(tokens) - len(self._first_logits) :], strict=True):
            self._active[slot].row.ids.append(token)
            new[slot] = [token]
        self._first_logits.clear()
        found = {self._active[slot].number: ids for slot, ids in new.items()}
        for slot, ids in new.items():
            if ids[-1] in self._eos or self._active[slot].wanted == 0:
                self._end(slot)
        return found

    def run(self) -> None:
        """Steps until no request is left."""
        while self.step():
            pass

    def result(self, number: int) -> Tensor:
        """The ids (S + N,) of an ended request, prompt included. Handed over once and then forgotten.

        Raises ValueError where there is no such result.
        """
        require(number in self._results, f"result: request {number} is unknown, not ended, or was handed over before")
        return self._results.pop(number)

    def _admit(self) -> None:
        """Waiting requests into free slots: the prompt's state into the slot's row."""
        free = [slot for slot in range(self._capacity) if slot not in self._active]
        for slot in free[: len(self._waiting)]:
            request = self._waiting.popleft()
            if self._cache is None:
                logits, state = request.prompt.prefill(self._model)
            else:
                logits, state = self._cache.prefill(self._model, request.prompt.ids, self._chunk_size)
            if self._state is None:
                with torch.inference_mode(False):  # steps outside of it may follow, and write there
                    self._state = _pytree.tree_map(lambda leaf: leaf.new_zeros(self._capacity, *leaf.shape[1:]), state)
            self._write([slot], state)
            self._first_logits[slot] = logits[:, -1]
            self._active[slot] = request

    def _verify(self, slots: list[int]) -> tuple[Window, Tensor, Any, Any]:
        """What the rows in these slots were given, the logits (N * S, V), and their states before and after that."""
        requests = [self._active[slot] for slot in slots]
        rows, ids = [request.row for request in requests], requests[0].prompt.ids
        state = reorder_state(self._state, _index(slots, ids))
        before = self._speculation.absorb(rows, state, ids)
        if before is not state:
            self._write(slots, before)
        window, logits, after = self._speculation.verify(rows, [request.wanted for request in requests], before, ids)
        return window, logits.flatten(0, 1), before, after

    def _accept(
        self, slots: list[int], tokens: list[int], verified: tuple[Window, Tensor, Any, Any]
    ) -> dict[int, list[int]]:
        """What was chosen behind each of the given ids -> the new ids of each slot, which are kept."""
        window, _, before, after = verified
        size = window.size
        chosen = [tokens[place * size : (place + 1) * size] for place in range(len(slots))]
        new = [until_end(ids, self._eos) for ids in window.accepted(chosen)]
        rows = [self._active[slot].row for slot in slots]
        self._write(slots, self._speculation.accept(window, rows, new, before, after))
        return dict(zip(slots, new, strict=True))

    def _write(self, slots: list[int], state: Any) -> None:
        """The rows of `state` into those of the slots."""
        if not slots:
            return
        for buffer, leaf in zip(_pytree.tree_leaves(self._state), _pytree.tree_leaves(state), strict=True):
            buffer.index_copy_(0, _index(slots, buffer), leaf.to(buffer.dtype))

    def _end(self, slot: int) -> None:
        request = self._active.pop(slot)
        if self._cache is not None:  # the next turn of a conversation begins so
            self._cache.store(request.row.ids[: request.row.seen], row_of(self._state, slot))
        self._finish(request)

    def _finish(self, request: _Request) -> None:
        self._results[request.number] = request.prompt.ids.new_tensor(request.row.ids)


def _index(slots: list[int], like: Tensor) -> Tensor:
    return torch.tensor(slots, device=like.device)
