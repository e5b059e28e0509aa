"""Checkpoints of a small xLSTMLarge in folders, as Hugging Face and NX-AI lay them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from xlstm_cuda.interop.checkpoints import flat_yaml
from xlstm_cuda.interop.checkpoints.layouts import LAYOUTS

pytest.importorskip("safetensors")
from safetensors.torch import load_file, save_file  # noqa: E402

DIM, HEADS, BLOCKS, VOCAB, QK, V, FFN = 64, 2, 2, 30, 32, 64, 192
BLOCK = {
    "norm_mlstm.weight": (DIM,),
    "mlstm_layer.q.weight": (QK, DIM),
    "mlstm_layer.k.weight": (QK, DIM),
    "mlstm_layer.v.weight": (V, DIM),
    "mlstm_layer.ogate_preact.weight": (V, DIM),
    "mlstm_layer.igate_preact.weight": (HEADS, DIM),
    "mlstm_layer.igate_preact.bias": (HEADS,),
    "mlstm_layer.fgate_preact.weight": (HEADS, DIM),
    "mlstm_layer.fgate_preact.bias": (HEADS,),
    "mlstm_layer.multihead_norm.weight": (V,),
    "mlstm_layer.out_proj.weight": (DIM, V),
    "norm_ffn.weight": (DIM,),
    "ffn.proj_up_gate.weight": (FFN, DIM),
    "ffn.proj_up.weight": (FFN, DIM),
    "ffn.proj_down.weight": (DIM, FFN),
}
FUSED_BLOCK = {
    "norm_mlstm.weight": (DIM,),
    "mlstm_layer.qkv_opreact.weight": (2 * QK + 2 * V, DIM),
    "mlstm_layer.ifgate_preact.weight": (2 * HEADS, DIM),
    "mlstm_layer.ifgate_preact.bias": (2 * HEADS,),
    "mlstm_layer.multihead_norm.weight": (V,),
    "mlstm_layer.out_proj.weight": (DIM, V),
    "norm_ffn.weight": (DIM,),
    "ffn.proj_up_gate_z.weight": (2 * FFN, DIM),
    "ffn.proj_down.weight": (DIM, FFN),
}
NXAI_CONFIG = {"embedding_dim": DIM, "num_heads": HEADS, "num_blocks": BLOCKS, "vocab_size": VOCAB}
HF_CONFIG = {
    "architectures": ["xLSTMForCausalLM"],
    "model_type": "xlstm",
    **{"hidden_size": DIM, "num_heads": HEADS, "num_hidden_layers": BLOCKS, "vocab_size": VOCAB, "eos_token_id": 7},
}

WITH_NXAI_NAMES = [to for to, layout in LAYOUTS.items() if layout.tensor_name("embedding.weight") == "embedding.weight"]

StateDict = dict[str, Tensor]


def shapes(block: dict[str, Any] = BLOCK, hf: bool = False, bias: bool = False) -> dict[str, tuple[int, ...]]:
    names = {"backbone.embeddings.weight" if hf else "embedding.weight": (VOCAB, DIM)}
    for index in range(BLOCKS):
        for name, shape in block.items():
            names[f"backbone.blocks.{index}.{name}"] = shape
            if bias:
                names[f"backbone.blocks.{index}.{name.replace('.weight', '.bias')}"] = shape[:1]
    names["backbone.out_norm.weight"] = (DIM,)
    if bias and not hf:
        names["backbone.out_norm.bias"] = (DIM,)
    return {**names, "lm_head.weight": (VOCAB, DIM)}


def draw(dtype: torch.dtype = torch.float32, **layout: Any) -> StateDict:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes(**layout).items()}


def hf_folder(path: Path, tensors: StateDict | None = None, **config: Any) -> Path:
    path.mkdir()
    save_file(draw(hf=True) if tensors is None else tensors, path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text(json.dumps({**HF_CONFIG, **config}))
    return path


def nxai_folder(path: Path, tensors: StateDict | None = None, **config: Any) -> Path:
    path.mkdir()
    save_file(draw() if tensors is None else tensors, path / "model.safetensors")
    (path / "config.yaml").write_text(flat_yaml.dumps({**NXAI_CONFIG, **config}))
    return path


def load(folder: Path) -> StateDict:
    tensors: StateDict = {}
    for file in sorted(folder.glob("*.safetensors")):
        part = load_file(file)
        assert not tensors.keys() & part.keys()
        tensors.update(part)
    return tensors


def assert_equal(actual: StateDict, expected: StateDict) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert torch.equal(actual[name], value), name


def renamed(tensors: StateDict) -> StateDict:
    return {name.replace("backbone.embeddings.", "embedding."): value for name, value in tensors.items()}
