"""States behind prefixes of prompts, so that what several prompts begin with is computed once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from .decoding import Generator, check_count


@dataclass(frozen=True)
class _Entry:
    state: Any  # of one row
    logits: Tensor | None  # (1, 1, V) of the last id; None where nobody asked for them
    size: int  # bytes


class PrefixCache:
    """Recurrent states by the tokens before them: of a prompt, only what follows the longest known prefix is computed.

    A state has one size, however long its prefix is. Kept are the states at multiples of `interval` tokens of each
    prompt and the one behind it; for an ended request of SlotDecoder also the one behind its answer, where the next
    turn of a conversation goes on. The least recently used ones leave first.

    max_bytes: of all kept states and logits together. One entry that is larger is not kept.
    interval: tokens; None: no states inside of prompts.

    A cache belongs to one model, whose weights do not change meanwhile: `clear` it after they have. `hits` counts the
    tokens that were found, `misses` those that were computed. Raises ValueError for counts below 1, TypeError for no
    integers.
    """

    def __init__(self, max_bytes: int, *, interval: int | None = 512) -> None:
        check_count("PrefixCache: max_bytes", max_bytes, 1)
        check_count("PrefixCache: interval", interval, 1, optional=True)
        self.max_bytes = max_bytes
        self.interval = interval
        self.hits = self.misses = 0
        self._entries: OrderedDict[tuple[int, ...], _Entry] = OrderedDict()  # least recently used first
        self._bytes = 0

    def __len__(self) -> int:
        """How many states are kept."""
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """Of all kept states and logits together."""
        return self._bytes

    def clear(self) -> None:
        """Forgets all states."""
        self._entries.clear()
        self._bytes = 0

    def prefill(self, model: Generator, ids: Tensor, chunk_size: int | None = None) -> tuple[Tensor, Any]:
        """`model.prefill` of one prompt (1, S), S >= 1: logits (1, 1, V) of the last token and the state after it.

        chunk_size: tokens that go through the model at once, at most.
        """
        tokens = tuple(ids[0].tolist())
        known, found = self._longest(tokens)
        self.hits += known
        self.misses += len(tokens) - known
        logits, state = (found.logits, found.state) if found is not None else (None, None)
        for end in self._ends(known, len(tokens), chunk_size):
            logits, state = model.prefill(ids[:, known:end], state)
            known = end
            if end == len(tokens) or (self.interval is not None and end % self.interval == 0):
                self.store(tokens[:end], state, logits)
        assert logits is not None  # `_longest` finds no whole prompt without
        return logits, state

    def store(self, ids: Sequence[int], state: Any, logits: Tensor | None = None) -> None:
        """Keeps the state of one row behind ids; logits (1, 1, V): of the last id. Both must not be changed later."""
        key = tuple(ids)
        size = sum(leaf.nbytes for leaf in _pytree.tree_leaves((state, logits)) if isinstance(leaf, Tensor))
        before = self._entries.pop(key, None)
        if before is not None:
            self._bytes -= before.size
            if logits is None:
                logits, size = before.logits, before.size
        if size > self.max_bytes:
            return
        self._entries[key] = _Entry(state, logits, size)
        self._bytes += size
        while self._bytes > self.max_bytes:
            self._bytes -= self._entries.popitem(last=False)[1].size

    def _longest(self, ids: tuple[int, ...]) -> tuple[int, _Entry | None]:
        """Length and entry of the longest kept prefix; of the whole only with logits."""
        for length in sorted({len(key) for key in self._entries if len(key) <= len(ids)}, reverse=True):
            entry = self._entries.get(ids[:length])
            if entry is not None and (length < len(ids) or entry.logits is not None):
                self._entries.move_to_end(ids[:length])
                return length, entry
        return 0, None

    def _ends(self, begin: int, end: int, chunk_size: int | None) -> Iterator[int]:
        """Where the calls from `begin` to `end` end: at multiples of the interval and after chunk_size tokens."""
        while begin < end:
            following = min(end, begin + (chunk_size or end))
            if self.interval is not None:
                following = min(following, (begin // self.interval + 1) * self.interval)
            yield following
            begin = following


def row_of(state: Any, row: int) -> Any:
    """One row of a state's batch, in memory of its own: what a cache may keep."""
    with torch.inference_mode(False):
        return _pytree.tree_map(lambda leaf: leaf[row : row + 1].clone(), state)
