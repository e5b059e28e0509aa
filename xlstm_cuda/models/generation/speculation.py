"""Speculative decoding (arXiv 2211.17192): the next tokens are guessed, and verified by one step of the model.

A step takes up to 16 tokens, and reads the weights once for all of them. Tokens that the model would have chosen too
are kept; behind the first that it would not, its own choice is. So the result is that of plain decoding: greedy tokens
are the same up to rounding, samples come from the same distribution, as a guess is no random choice itself.

A recurrent state cannot be cut back. So the state from before a step stays wherever the step's tokens were not all
right, and the next step begins with those that were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree

from .decoding import Generator, Step, reorder_state
from .drafts import Draft
from .sampling import Sampling


@dataclass
class Row:
    """One sequence: its ids so far, of which the first `seen` are in its state, never all."""

    ids: list[int]
    seen: int

    @property
    def unseen(self) -> list[int]:
        return self.ids[self.seen :]


class Window(NamedTuple):
    """What one step is given of each row: what the state has not seen, then a guess, then padding."""

    rows: list[list[int]]
    known: list[int]  # of each row, the number of ids before the guess
    size: int

    def tensor(self, like: Tensor) -> Tensor:
        """(B, size)"""
        return like.new_tensor([row + row[-1:] * (self.size - len(row)) for row in self.rows])

    def accepted(self, chosen: Sequence[Sequence[int]]) -> list[list[int]]:
        """New ids of each row, from what the model chose behind each id (B, size): at least one."""
        found = []
        for row, known, own in zip(self.rows, self.known, chosen, strict=True):
            right = known
            while right < len(row) and row[right] == own[right - 1]:
                right += 1
            found.append(list(own[known - 1 : right]))
        return found

    def is_right(self, row: int, new: Sequence[int]) -> bool:
        """Whether the state after the step is this row's: neither padding nor a wrong guess went into it."""
        ids = self.rows[row]
        return len(ids) == self.size and self.known[row] + len(new) == len(ids) + 1


class Speculation:
    """The steps of some rows with a guess of their next ids.

    draft: gives a guess; None for none. window: ids of a row that go into one step at most.
    recorded: the model's step as a GraphedStep, whose state is valid until the next call: it is copied, and all steps
        have `window` ids, of which some may be padding, so that one recording serves them all.
    """

    def __init__(
        self, model: Generator, draft: Draft | None = None, window: int = 1, recorded: Step | None = None
    ) -> None:
        self._model, self._draft, self._window, self._recorded = model, draft, window, recorded

    def absorb(self, rows: Sequence[Row], state: Any, like: Tensor) -> Any:
        """Rows that leave little room for a guess: all their ids but the last go into the state, which is returned."""
        by_length: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            unseen = len(row.unseen) - 1
            if unseen and 2 * unseen >= self._window:
                by_length.setdefault(unseen, []).append(place)
        for count, places in by_length.items():
            index = torch.tensor(places, device=like.device)
            given = like.new_tensor([rows[place].unseen[:count] for place in places])
            state = with_rows(state, index, self._model.step(given, reorder_state(state, index))[1])
        for count, places in by_length.items():
            for place in places:
                rows[place].seen += count
        return state

    def verify(
        self, rows: Sequence[Row], wanted: Sequence[int], state: Any, like: Tensor
    ) -> tuple[Window, Tensor, Any]:
        """What the model was given, its logits (B, S, V), and the state after that.

        wanted: how many new ids each row takes at most. like: a tensor of ids.
        """
        window = self._guess(rows, wanted)
        step = self._model.step if self._recorded is None else self._recorded
        logits, after = step(window.tensor(like), state)
        return window, logits, after

    def accept(self, window: Window, rows: Sequence[Row], new: Sequence[list[int]], before: Any, after: Any) -> Any:
        """The new ids into the rows. Returns the state to go on with: of rows whose ids were all right, `after`."""
        right = [place for place in range(len(rows)) if window.is_right(place, new[place])]
        for row, ids in zip(rows, new, strict=True):
            row.ids += ids
        for place in right:
            rows[place].seen = len(rows[place].ids) - 1
        if len(right) == len(rows) and self._recorded is None:
            return after
        if not right:
            return before
        index = torch.tensor(right, device=_pytree.tree_leaves(after)[0].device)
        return with_rows(before, index, reorder_state(after, index))

    def _guess(self, rows: Sequence[Row], wanted: Sequence[int]) -> Window:
        found, known = [], []
        for row, count in zip(rows, wanted, strict=True):
            ids = row.unseen
            known.append(len(ids))
            free = min(self._window - len(ids), count - 1)  # behind a guess there is one id more
            if self._draft is not None and free > 0:
                ids += map(int, self._draft(tuple(row.ids), free)[:free])
            found.append(ids)
        longest = max(map(len, found))
        return Window(found, known, longest if self._recorded is None else self._window)


def with_rows(state: Any, index: Tensor, rows: Any) -> Any:
    """A copy of a state with other rows at `index` (N,)."""
    return _pytree.tree_map(lambda old, new: old.index_copy(0, index, new.to(old.dtype)), state, rows)


def until_end(ids: list[int], eos: tuple[int, ...]) -> list[int]:
    """Up to the first one of eos, with it."""
    return next((ids[: place + 1] for place, token in enumerate(ids) if token in eos), ids)


def decode(
    speculation: Speculation,
    sampling: Sampling,
    eos: tuple[int, ...],
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    like: Tensor,
    logits: Tensor,
    state: Any,
) -> list[list[int]]:
    """From the logits (B, 1, V) and state of prompts: the new ids of each row, up to its first one of `eos`.

    Rows that have ended stay in the batch, without a guess: its shape stays.
    """
    first = sampling.choose(logits[:, -1]).tolist()
    rows = [Row([*ids, token], len(ids)) for ids, token in zip(prompts, first, strict=True)]
    new = [[token] for token in first]
    while True:
        wanted = [0 if ids[-1] in eos else max_new_tokens - len(ids) for ids in new]
        if not any(wanted):
            return new
        state = speculation.absorb(rows, state, like)
        window, logits, after = speculation.verify(rows, wanted, state, like)
        chosen = sampling.choose(logits.flatten(0, 1)).view(len(rows), -1).tolist()
        found = window.accepted(chosen)
        state = speculation.accept(window, rows, found, state, after)
        for ids, more, count in zip(new, found, wanted, strict=True):
            ids += until_end(more, eos) if count else []
