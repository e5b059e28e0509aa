"""Sequences of different lengths, directions of time, and both directions in one call of a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ... import _onnx
from ..._backend import in_onnx_graph
from ..rows import document_ends


class Rows(NamedTuple):
    """What is known of the rows of a batch (B, S, ...): how long they are, and where they begin anew."""

    lengths: Tensor | None = None  # (B,): right padding
    reset: Tensor | None = None  # bool (B, S): the state is emptied before that token

    def backwards(self) -> Rows:
        """For a pass from the last token to the first: it begins anew at the last tokens of what `reset` begins."""
        return self if self.reset is None else self._replace(reset=document_ends(self.reset, self.lengths))


def unpack(input: PackedSequence) -> tuple[Tensor, Tensor]:
    """Padded tokens (B, S, ...) and lengths (B,) on the CPU, rows by decreasing length as they are packed."""
    return pad_packed_sequence(PackedSequence(input.data, input.batch_sizes), batch_first=True)


def repack(x: Tensor, lengths: Tensor, like: PackedSequence) -> PackedSequence:
    """The inverse of `unpack`, in the order of `like`."""
    data = pack_padded_sequence(x, lengths, batch_first=True).data
    return PackedSequence(data, like.batch_sizes, like.sorted_indices, like.unsorted_indices)


def reverse(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x (B, S, F) backwards in time; with lengths (B,) the tokens of each row, while its padding stays."""
    if lengths is None:
        return x.flip(1)
    t, end = torch.arange(x.shape[1], device=x.device), lengths[:, None]
    index = torch.where(t < end, end - 1 - t, t)
    return x.gather(1, index[..., None].expand_as(x))


def pad(input: Any) -> tuple[Tensor, Tensor]:
    """Padded tokens (B, S, ...) and lengths (B,) of a contiguous jagged tensor."""
    return input.to_padded_tensor(0.0), input.offsets().diff()


def unpad(x: Tensor, lengths: Tensor, like: Any) -> Tensor:
    """The inverse of `pad`: with the offsets of `like`, so that torch takes both for equally long."""
    kept = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
    return torch.nested.nested_tensor_from_jagged(x[kept], like.offsets())


def join(parts: Sequence[Tensor], dim: int) -> Tensor:
    """The heads of one or two directions side by side."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def merge_directions(s: Tensor) -> Tensor:
    """State of a layer (directions, B, H, ...) -> state of the kernel (B, directions * H, ...)."""
    return dense(s.transpose(0, 1)).flatten(1, 2)


def split_directions(s: Tensor, directions: int) -> Tensor:
    """The inverse of `merge_directions`."""
    return dense(s.unflatten(1, (directions, s.shape[1] // directions)).transpose(0, 1))


def dense(x: Tensor) -> Tensor:
    """x; in an ONNX graph with strides that follow from its shape."""
    return _onnx.dense(x) if in_onnx_graph() else x
