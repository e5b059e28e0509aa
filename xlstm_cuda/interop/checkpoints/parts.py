"""Names and shapes of xLSTMLarge's tensors in every layout, and the layout of a set of names.

Parts: the tensors of NX-AI's xLSTMLarge with weight_mode="single", of which every layout is made. Fused tensors are
parts below each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...models.large.weights import FUSED
from ...nn.loading import likely_layout

Shape = tuple[int, ...]

OUT_NORM_BIAS = "backbone.out_norm.bias"  # Hugging Face's model never has it
EMBEDDING, HEAD = "embedding.weight", "lm_head.weight"


def parts(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Shape of every part, from a config with NX-AI's fields."""
    dim, vocab, bias = config["embedding_dim"], config["vocab_size"], config["use_bias"]
    shapes: dict[str, Shape] = {EMBEDDING: (vocab, dim)}
    for block in range(config["num_blocks"]):
        for module, shape, has_bias in _block(config):
            shapes[f"backbone.blocks.{block}.{module}.weight"] = shape
            if has_bias:
                shapes[f"backbone.blocks.{block}.{module}.bias"] = shape[:1]
    if config["add_out_norm"]:
        shapes["backbone.out_norm.weight"] = (dim,)
        if bias:
            shapes[OUT_NORM_BIAS] = (dim,)
    shapes[HEAD] = (vocab, dim)
    return shapes


def _block(config: Mapping[str, Any]) -> list[tuple[str, Shape, bool]]:
    """Module, shape of its weight and whether it has a bias."""
    dim, heads, bias = config["embedding_dim"], config["num_heads"], config["use_bias"]
    qk, v = int(dim * config["qk_dim_factor"]), int(dim * config["v_dim_factor"])
    multiple = config["ffn_round_up_to_multiple_of"]
    ffn = int((dim * config["ffn_proj_factor"] + multiple - 1) // multiple * multiple)
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


def stored(names: Iterable[str], layout: str, weights: str) -> dict[str, list[str]]:
    """The tensors of a layout ("hf", "nxai" or "xlstm_cuda") and weight_mode, each with the parts that make it up."""
    result: dict[str, list[str]] = {}
    for name in names:
        if layout == "hf" and name == OUT_NORM_BIAS:
            continue
        key = _fused(name) if weights == "fused" else name
        if layout == "hf" and key == EMBEDDING:
            key = "backbone.embeddings.weight"
        result.setdefault(key, []).append(name)
    return result


def _fused(name: str) -> str:
    for fused, singles in FUSED.items():
        for single in singles:
            if f".{single}." in name:
                return name.replace(f".{single}.", f".{fused}.")
    return name


def recognise(names: Iterable[str]) -> tuple[bool, str]:
    """Whether tensors of these names are Hugging Face's (else NX-AI's or ours), and their weight_mode.

    Raises ValueError where they are of another kind of model.
    """
    names = list(names)
    hf = any(name.startswith("backbone.embeddings.") for name in names)
    if not (hf or any(name.startswith(("backbone.blocks.", "embedding.")) for name in names)):
        layout = likely_layout(names)
        hint = f", it looks like {layout}" if layout else ""
        raise ValueError(f"convert: the checkpoint is no xLSTMLarge{hint}")
    return hf, "fused" if any(".qkv_opreact." in name for name in names) else "single"


def check(expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
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
