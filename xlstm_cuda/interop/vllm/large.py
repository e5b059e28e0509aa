"""xLSTMLarge over the row of tokens that a serving engine hands in, and its weights one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..._states import MLSTMState
from ...models import xLSTMLarge, xLSTMLargeConfig
from ..checkpoints.layouts import LAYOUTS, OURS
from ..checkpoints.parts import EMBEDDING, HEAD, fused_name, part_shapes
from .batch import Batch, mlstm_over_pages

HF = LAYOUTS["hf"]


def config_of(hf_config: Mapping[str, Any]) -> xLSTMLargeConfig:
    """From the fields of transformers' xLSTMConfig. Raises ValueError where they are no such."""
    fields = OURS.config({**HF.fields(hf_config), "weight_mode": "fused"})
    return xLSTMLargeConfig(**{**fields, "mode": "inference"})


def state_shapes(config: xLSTMLargeConfig) -> tuple[tuple[int, ...], ...]:
    """Of C, n and m of one request and layer."""
    heads = config.num_heads
    qk, v = config.qk_dim // heads, config.v_dim // heads
    return (heads, qk, v), (heads, qk), (heads,)


def hidden_states(model: xLSTMLarge, ids: Tensor, pages: Sequence[MLSTMState | None], batch: Batch) -> Tensor:
    """ids (T,) of all requests -> (T, D) before the head. pages: of each block."""
    x = model.embedding(ids)[None]
    for block, own in zip(model.backbone.blocks, pages, strict=True):
        x, _ = block.with_cell(x, partial(mlstm_over_pages, pages=own, batch=batch))
    y: Tensor = model.backbone.out_norm(x)[0]
    return y


@torch.no_grad()
def load_weights(model: xLSTMLarge, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
    """Copies tensors of xLSTMForCausalLM into the model, each as it comes; the names of what was written.

    Raises ValueError for a name or shape that the model does not have.
    """
    places = _places(model)
    own, written = dict(model.named_parameters()), set()
    for name, tensor in weights:
        if name not in places:
            raise ValueError(f"load_weights: {name} is no tensor of an xLSTMForCausalLM of this config")
        target, first, count = places[name]
        rows = own[target][first : first + count]
        if rows.shape != tensor.shape:
            raise ValueError(f"load_weights: {name} must have shape {tuple(rows.shape)}, got {tuple(tensor.shape)}")
        rows.copy_(tensor)
        written.add(target)
    if HEAD not in written and EMBEDDING in written:  # tied
        own[HEAD].copy_(own[EMBEDDING])
        written.add(HEAD)
    return written


def _places(model: xLSTMLarge) -> dict[str, tuple[str, int, int]]:
    """By its name in a checkpoint, fused or not: the tensor of ours that holds it, its first row and their number."""
    shapes = part_shapes(vars(model.config))
    found: dict[str, tuple[str, int, int]] = {}
    for target, parts in OURS.tensors(shapes, model.config.weight_mode).items():
        whole = HF.tensor_name(target) or target
        found[whole] = (target, 0, sum(shapes[part][0] for part in parts))
        first = 0
        for part in parts:
            name = HF.tensor_name(part) or part
            found[name] = (target, first, shapes[part][0])
            first += shapes[part][0]
            assert fused_name(part) == target or part == target
    return found
