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
from .sampling import Sampling, seeded


@dataclass
class _Request:
    number: int
    prompt: Prompt
    max_new_tokens: int
    new: list[int] = field(default_factory=list)


class SlotDecoder:
    """Decodes up to `capacity` requests at once; others wait until one has ended.

    A request ends with eos_id or its max_new_tokens; its slot is free in the next step. Only rows with a request
    are computed. A request's greedy tokens are those of `generate` on it alone, whatever runs beside it; samples depend
    on the order of all requests.

    temperature, top_k, top_p, seed, eos_id, prefill_chunk_size: see generate; for all requests.
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
    ) -> None:
        check_count("SlotDecoder: capacity", capacity, 1)
        check_count("SlotDecoder: prefill_chunk_size", prefill_chunk_size, 1, optional=True)
        self._model = model
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
    def step(self) -> dict[int, int]:
        """One token more for every active request: {its number: the token}; empty where no request is left.

        After an error the active requests are as they were before, and the next step goes on with them; a request whose
        prompt raised it is dropped.
        """
        with evaluation(self._model):
            self._admit()
            if not self._active:
                return {}
            stepped, state, logits = self._next_logits()
        tokens = self._sampling.choose(logits).tolist()
        self._write(stepped, state)  # only now: a step whose choice failed is repeated
        slots = [*stepped, *self._first_logits]
        self._first_logits.clear()
        requests = [self._active[slot] for slot in slots]
        for slot, request, token in zip(slots, requests, tokens, strict=True):
            request.new.append(token)
            if token in self._eos or len(request.new) == request.max_new_tokens:
                del self._active[slot]
                self._finish(request)
        return {request.number: token for request, token in zip(requests, tokens, strict=True)}

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
            logits, state = request.prompt.prefill(self._model)
            if self._state is None:
                with torch.inference_mode(False):  # steps outside of it may follow, and write there
                    self._state = _pytree.tree_map(lambda leaf: leaf.new_zeros(self._capacity, *leaf.shape[1:]), state)
            self._write([slot], state)
            self._first_logits[slot] = logits[:, -1]
            self._active[slot] = request

    def _next_logits(self) -> tuple[list[int], Any, Tensor]:
        """The slots that made a step, their next state, and logits (N, V): theirs, then those of the new prompts."""
        slots = [slot for slot in self._active if slot not in self._first_logits]
        rows, state = [], None
        if slots:
            ids = self._active[slots[0]].prompt.ids
            last = ids.new_tensor([[self._active[slot].new[-1]] for slot in slots])
            logits, state = self._model.step(last, reorder_state(self._state, _index(slots, ids)))
            rows.append(logits[:, -1])
        return slots, state, torch.cat([*rows, *self._first_logits.values()])

    def _write(self, slots: list[int], state: Any) -> None:
        """The rows of `state` into those of the slots."""
        if not slots:
            return
        for buffer, leaf in zip(_pytree.tree_leaves(self._state), _pytree.tree_leaves(state), strict=True):
            buffer.index_copy_(0, _index(slots, buffer), leaf.to(buffer.dtype))

    def _finish(self, request: _Request) -> None:
        ids = request.prompt.ids[0]
        self._results[request.number] = torch.cat([ids, ids.new_tensor(request.new)])


def _index(slots: list[int], like: Tensor) -> Tensor:
    return torch.tensor(slots, device=like.device)
