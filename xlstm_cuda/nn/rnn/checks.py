"""Checks of what a user passes to LSTM, sLSTM and mLSTM."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ... import _autocast


class InputError(ValueError, RuntimeError):
    """A wrong input: ValueError as everywhere in this library, RuntimeError as in torch.nn.LSTM."""


def check_options(op: str, sizes: Mapping[str, Any], flags: Mapping[str, Any], proj_size: Any, dropout: Any) -> None:
    """Arguments of the constructors. sizes: ints of at least 1; flags: bools."""
    for name, size, least in [*((name, size, 1) for name, size in sizes.items()), ("proj_size", proj_size, 0)]:
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"{op}: {name} must be an int, got {type(size).__name__}")
        if size < least:
            raise ValueError(f"{op}: {name} must be at least {least}, got {size}")
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{op}: {name} must be a bool, got {type(flag).__name__}")
    if proj_size >= sizes["hidden_size"]:
        raise ValueError(f"{op}: proj_size must be smaller than hidden_size={sizes['hidden_size']}, got {proj_size}")
    probability = float(dropout) if isinstance(dropout, Real) and not isinstance(dropout, bool) else -1.0
    if not 0 <= probability <= 1:
        raise ValueError(f"{op}: dropout must be a number between 0 and 1, got {dropout!r}")
    if probability > 0 and sizes["num_layers"] == 1:
        what = f"dropout={dropout} comes after every layer but the last, it needs num_layers > 1"
        warnings.warn(f"{op}: {what}", stacklevel=3)


def check_heads(op: str, num_heads: int, **sizes: int) -> None:
    """Raises ValueError unless num_heads divides each size."""
    for name, size in sizes.items():
        if size % num_heads:
            raise ValueError(f"{op}: {name} must be divisible by num_heads, got {name}={size}, num_heads={num_heads}")


def check_weights(op: str, weights: Iterable[Any]) -> None:
    """Raises for the weights of torch's call_for_per_sample_grads: they refuse what follows, but name no way out."""
    if any(type(weight).__name__ == "ExpandedWeight" for weight in weights):
        raise RuntimeError(
            f"{op}: call_for_per_sample_grads of torch knows only modules of torch: gradients of each sample are "
            "torch.func.vmap(torch.func.grad(...)), or Opacus' GradSampleModule (docs/migrate.md, Derivatives)"
        )


def check_input(op: str, input: Any, input_size: int, weight: Tensor) -> None:
    """Raises unless input is a tensor (S, B, F), (B, S, F) or (S, F), or packed (tokens, F), F = input_size, with the
    device and dtype of weight."""
    packed = isinstance(input, PackedSequence)
    x = input.data if packed else input
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: input must be a Tensor or a PackedSequence, got {type(x).__name__}")
    if x.is_nested and x.layout != torch.jagged:
        way = "torch.nested.as_nested_tensor(list(input.unbind()), layout=torch.jagged) makes one"
        raise TypeError(f"{op}: a NestedTensor must have the layout torch.jagged, got {x.layout}: {way}")
    if not x.is_nested and x.layout != torch.strided:
        raise TypeError(f"{op}: input must be a dense Tensor or a PackedSequence, got {x.layout}")
    if packed:
        if torch.compiler.is_exporting():
            raise TypeError(
                f"{op}: torch.export does not trace a PackedSequence, whose lengths are values: export with padded "
                "rows of one length, or the functions lstm and slstm, which take `lengths`"
            )
        _check_packed(op, input)
    elif x.ndim not in (2, 3):
        raise InputError(f"{op}: input must be 2-D, or 3-D for a batch, got {x.ndim}-D")
    _check_features(op, x, input_size, weight)


def check_token(op: str, input: Any, input_size: int, weight: Tensor) -> None:
    """Raises unless input is a tensor (B, F) or (F,), F = input_size, with the device and dtype of weight."""
    if not isinstance(input, Tensor):
        raise TypeError(f"{op}: input must be a Tensor, got {type(input).__name__}")
    if input.is_nested or input.layout != torch.strided:
        raise TypeError(f"{op}: input must be a dense Tensor")
    if input.ndim not in (1, 2):
        raise InputError(f"{op}: input must be 1-D, or 2-D for a batch, got {input.ndim}-D")
    _check_features(op, input, input_size, weight)


def _check_features(op: str, x: Tensor, input_size: int, weight: Tensor) -> None:
    if x.shape[-1] != input_size:
        raise InputError(f"{op}: input must have input_size={input_size} features, got shape {tuple(x.shape)}")
    if x.device != weight.device:
        raise InputError(f"{op}: input must be on the device of the weights, {weight.device}, got {x.device}")
    if x.dtype != weight.dtype and not _autocast.enabled(x.device.type):
        raise InputError(f"{op}: input must have the dtype of the weights, {weight.dtype}, got {x.dtype}")


def check_reset(op: str, reset: Any, input: Any, learned: bool) -> None:
    """Raises unless reset has a bool for each token of input, and lies as it does."""
    if learned:
        raise ValueError(
            f"{op}: reset leads to the empty state, not to a learned one: without learn_initial_state only"
        )
    packed = isinstance(input, PackedSequence)
    if isinstance(reset, PackedSequence) != packed or (not packed and not isinstance(reset, Tensor)):
        kind = "a PackedSequence" if packed else "a tensor"
        raise TypeError(f"{op}: reset must be {kind}, as the input is, got {type(reset).__name__}")
    flags, x = (reset.data, input.data) if packed else (reset, input)
    if flags.dtype != torch.bool:
        raise TypeError(f"{op}: reset must have dtype torch.bool, got {flags.dtype}")
    if flags.device != x.device:
        raise InputError(f"{op}: reset must be on the device of the input, {x.device}, got {flags.device}")
    if flags.is_nested != x.is_nested or (x.is_nested and flags.layout != x.layout):
        raise TypeError(f"{op}: reset must be a jagged NestedTensor where the input is one, and nowhere else")
    same = _same_rows(reset, input) if packed else True
    if x.is_nested:
        same = torch.equal(flags.contiguous().offsets(), x.contiguous().offsets())
    if not same or (not x.is_nested and flags.shape != x.shape[:-1]):
        shape = (
            "the lengths of the input's rows, in their order"
            if packed or x.is_nested
            else f"shape {tuple(x.shape[:-1])}"
        )
        raise InputError(
            f"{op}: reset must have {shape}, got {'others' if packed or x.is_nested else tuple(flags.shape)}"
        )


def check_state(
    op: str, fields: Sequence[str], hx: Any, shapes: Sequence[tuple[int, ...]], device: torch.device
) -> None:
    """Raises unless hx holds one tensor of the given shape per field, on that device."""
    if isinstance(hx, Tensor) or not isinstance(hx, Sequence):
        raise TypeError(f"{op}: hx must be a tuple ({', '.join(fields)}) of tensors, got {type(hx).__name__}")
    if len(hx) != len(fields):
        raise InputError(f"{op}: hx must be a tuple ({', '.join(fields)}), got {len(hx)} tensors")
    for name, s, shape in zip(fields, hx, shapes, strict=True):
        if not isinstance(s, Tensor):
            raise TypeError(f"{op}: {name} of hx must be a tensor, got {type(s).__name__}")
        if s.device != device:
            raise InputError(f"{op}: {name} of hx must be on the device of the input, {device}, got {s.device}")
        if s.shape != shape:
            raise InputError(f"{op}: {name} of hx must have shape {shape}, got {tuple(s.shape)}")


def _same_rows(a: PackedSequence, b: PackedSequence) -> bool:
    """Whether two packed batches have rows of the same lengths, packed in the same order."""
    if not torch.equal(a.batch_sizes, b.batch_sizes):
        return False
    as_they_are = torch.arange(max(a.batch_sizes.tolist(), default=0))
    orders = [as_they_are if p.sorted_indices is None else p.sorted_indices.cpu() for p in (a, b)]
    return torch.equal(*orders)


def _check_packed(op: str, input: PackedSequence) -> None:
    if input.data.ndim != 2:
        raise InputError(f"{op}: the data of a PackedSequence must be 2-D, got {input.data.ndim}-D")
    sizes = input.batch_sizes.tolist()
    if sizes != sorted(sizes, reverse=True) or min(sizes, default=1) < 1:
        raise InputError(f"{op}: batch_sizes of a PackedSequence must not increase: pack with enforce_sorted=False")
    if sum(sizes) != input.data.shape[0]:
        raise InputError(f"{op}: batch_sizes add up to {sum(sizes)} tokens, the PackedSequence has {len(input.data)}")
