"""What all ways of generating share: the model's protocol, its evaluation mode, prompts, rows of states."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree

from ...nn.config import require

EosId: TypeAlias = int | Sequence[int] | None
Step: TypeAlias = Callable[[Tensor, Any], tuple[Tensor, Any]]  # ids (B, 1), state -> logits (B, 1, V), the next state

PREFILL_CHUNK_SIZE = 8192  # tokens of a row

# Steps between two looks whether all rows have ended, where it is not 1. A look waits for the device, which would idle
# while the next step is launched; steps in vain, at most seven, cost less.
LOOK_EVERY = {"cuda": 8}


class Generator(Protocol):
    """What generation needs of a model, which must be an nn.Module. A state is a pytree of tensors (B, ...)."""

    def prefill(self, ids: Tensor, state: Any = None, *, reset: Tensor | None = None) -> tuple[Tensor, Any]: ...

    def step(self, ids: Tensor, state: Any) -> tuple[Tensor, Any]: ...


def reorder_state(state: Any, index: Tensor) -> Any:
    """The rows `index` (N,) of a state's batch, rows of all its tensors: for beams, and for picking rows out."""
    return _pytree.tree_map(lambda leaf: leaf.index_select(0, index), state)


def check_count(name: str, value: Any, least: int, *, optional: bool = False) -> None:
    """Raises unless value is an integer of at least `least`, or None where that is allowed."""
    if optional and value is None:
        return
    form = "None or " if optional else ""
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be {form}an integer, got {value!r}") from None
    require(count >= least, f"{name} must be {form}>= {least}, got {count}")


def eos_ids(op: str, eos_id: EosId) -> tuple[int, ...]:
    """eos_id as a tuple of ids, checked; () for None. Rows that ended are filled up with the first one.

    Raises TypeError for what is no integer, ValueError for a negative one and an empty list.
    """
    if not isinstance(eos_id, Sequence):
        if isinstance(eos_id, (set, frozenset, Tensor)):
            raise TypeError(f"{op}: eos_id must be None, an integer or a list of them, got {type(eos_id).__name__}")
        check_count(f"{op}: eos_id", eos_id, 0, optional=True)
        return () if eos_id is None else (operator.index(eos_id),)
    require(len(eos_id) > 0, f"{op}: eos_id must be None, an integer or a list of them, got {eos_id!r}")
    for value in eos_id:
        check_count(f"{op}: every eos_id", value, 0)
    return tuple(map(operator.index, eos_id))


def is_any_of(ids: Tensor, values: tuple[int, ...]) -> Tensor:
    """bool, shaped as ids: whether an id is one of the values."""
    found = ids == values[0]
    for value in values[1:]:
        found = found | (ids == value)
    return found


def check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}")


@contextmanager
def evaluation(model: Any) -> Iterator[None]:
    """The model in evaluation mode; afterwards all its modules have their own mode back, also after an error."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@dataclass(frozen=True)
class Prompt:
    """ids (B, S), the state before them, and where rows begin after padding, bool (B, S) or None."""

    ids: Tensor
    state: Any = None
    reset: Tensor | None = None
    chunk_size: int | None = PREFILL_CHUNK_SIZE

    def __post_init__(self) -> None:
        check_tensor("generate: prompt_ids", self.ids)
        shape = tuple(self.ids.shape)
        require(len(shape) == 2 and shape[1] > 0, f"generate: prompt_ids must have shape (B, S), S >= 1, got {shape}")
        check_count("generate: prefill_chunk_size", self.chunk_size, 1, optional=True)

    def prefill(self, model: Generator) -> tuple[Tensor, Any]:
        """Logits (B, 1, V) of the last token and the state after it, chunk by chunk."""
        seqlen = self.ids.shape[1]
        size = self.chunk_size or seqlen
        state = self.state
        for start in range(0, seqlen, size):
            chunk = slice(start, start + size)
            reset = None if self.reset is None else self.reset[:, chunk]
            logits, state = model.prefill(self.ids[:, chunk], state, reset=reset)
        return logits, state


def padded_prompt(ids: Tensor, attention_mask: Tensor | None, state: Any, chunk_size: int | None) -> Prompt:
    """A Prompt whose rows begin where attention_mask does; checked before the mask is."""
    prompt = Prompt(ids, state, None, chunk_size)
    return replace(prompt, reset=starts_behind_padding(ids, attention_mask, state))


def starts_behind_padding(ids: Tensor, attention_mask: Tensor | None, state: Any) -> Tensor | None:
    """attention_mask (B, S), zeros, then ones in every row -> bool (B, S), True at the first one; None for no zeros.

    Raises ValueError for another mask, and for padding between a carried state and the tokens.
    """
    if attention_mask is None:
        return None
    check_tensor("generate: attention_mask", attention_mask)
    shape, expected = tuple(attention_mask.shape), tuple(ids.shape)
    require(shape == expected, f"generate: attention_mask must have shape {expected} like prompt_ids, got {shape}")
    mask = attention_mask.cpu()  # one wait for the device, not one for each question
    real = mask != 0
    require(bool((real == mask).all()), "generate: attention_mask must hold only 0 and 1")
    require(bool(real.any(1).all()), "generate: every row of attention_mask needs at least one 1")
    holes = real[:, :-1] & ~real[:, 1:]
    require(not bool(holes.any()), "generate: attention_mask must be left padding, zeros and then ones in every row")
    if bool(real.all()):
        return None
    require(
        state is None,
        "generate: attention_mask cannot pad a prompt that continues a state: padding must leave no trace, so that the "
        "state is emptied after it",
    )
    return (real & ~F.pad(real[:, :-1], (1, 0))).to(ids.device)
