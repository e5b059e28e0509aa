"""Parts: the tensors of NX-AI's xLSTMLarge with weight_mode="single", of which the tensors of every layout are made.

A tensor of a layout is one part, or several of the same kind below each other ("fused").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...models.large.config import ffn_width
from ...models.large.weights import FUSED
from ...nn.loading import likely_layout

Shape = tuple[int, ...]

OUT_NORM_BIAS = "backbone.out_norm.bias"
EMBEDDING, HEAD = "embedding.weight", "lm_head.weight"
BLOCKS = "backbone.blocks."


def part_shapes(fields: Mapping[str, Any]) -> dict[str, Shape]:
    """Shape of every part, from the fields of a config."""
    dim, vocab, bias = fields["embedding_dim"], fields["vocab_size"], fields["use_bias"]
    shapes: dict[str, Shape] = {EMBEDDING: (vocab, dim)}
    for block in range(fields["num_blocks"]):
        for module, shape, has_bias in _block(fields):
            shapes[f"{BLOCKS}{block}.{module}.weight"] = shape
            if has_bias:
                shapes[f"{BLOCKS}{block}.{module}.bias"] = shape[:1]
    if fields["add_out_norm"]:
        shapes["backbone.out_norm.weight"] = (dim,)
        if bias:
            shapes[OUT_NORM_BIAS] = (dim,)
    shapes[HEAD] = (vocab, dim)
    return shapes


def _block(fields: Mapping[str, Any]) -> list[tuple[str, Shape, bool]]:
    """Module, shape of its weight and whether it has a bias."""
    dim, heads, bias = fields["embedding_dim"], fields["num_heads"], fields["use_bias"]
    qk, v = int(dim * fields["qk_dim_factor"]), int(dim * fields["v_dim_factor"])
    ffn = ffn_width(dim, fields["ffn_proj_factor"], fields["ffn_round_up_to_multiple_of"])
    return [
        ("norm_mlstm", (dim,), bias),
        ("mlstm_layer.q", (qk, dim), bias),
        ("mlstm_layer.k", (qk, dim), bias),
        ("mlstm_layer.v", (v, dim), bias),
        ("mlstm_layer.ogate_preact", (v, dim), bias),
        ("mlstm_layer.igate_preact", (heads, dim), True),
        ("mlstm_layer.fgate_preact", (heads, dim), True),
        ("mlstm_layer.multihead_norm", (v,), bias),
        ("mlstm_layer.out_proj", (dim, v), bias),
        ("norm_ffn", (dim,), bias),
        ("ffn.proj_up_gate", (ffn, dim), bias),
        ("ffn.proj_up", (ffn, dim), bias),
        ("ffn.proj_down", (dim, ffn), bias),
    ]


def fused_name(part: str) -> str:
    """The tensor that holds a part where weight_mode is "fused"."""
    for fused, singles in FUSED.items():
        for single in singles:
            if f".{single}." in part:
                return part.replace(f".{single}.", f".{fused}.")
    return part


def fused_shape(shapes: Mapping[str, Shape], parts: list[str]) -> Shape:
    """Of the tensor in which these parts are below each other."""
    return (sum(shapes[part][0] for part in parts), *shapes[parts[0]][1:])


def check_shapes(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
    """Raises ValueError that lists all tensors that are missing, extra or of the wrong shape."""
    problems = [f"missing: {name} {expected[name]}" for name in expected if name not in found]
    problems += [f"extra: {name} {found[name]}" for name in found if name not in expected]
    problems += [
        f"wrong shape: {name} is {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        layout = likely_layout(found)
        hint = [f"the checkpoint looks like {layout}"] if layout else []
        lines = ["convert: the checkpoint does not fit its config:", *hint, *problems]
        raise ValueError("\n  ".join(lines))
