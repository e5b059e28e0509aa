"""Checkpoints of xLSTMLarge converted between layouts: names, values bit by bit, files, memory and errors."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.paths import ROOT
from xlstm_cuda import __main__
from xlstm_cuda.interop.checkpoints import convert, flat_yaml, folders, load_large, sources, targets
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


@pytest.mark.parametrize("to", WITH_NXAI_NAMES)
@pytest.mark.parametrize("weights", ["single", "fused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_from_hugging_face_and_back(to: str, weights: str, dtype: torch.dtype, tmp_path: Path) -> None:
    source = hf_folder(tmp_path / "hf", draw(dtype, hf=True))
    done = convert(source, tmp_path / "there", to, weights=weights)
    assert (done.source_layout, done.source_weights, done.weights) == ("hf", "single", weights)
    there = load(tmp_path / "there")
    block = FUSED_BLOCK if weights == "fused" else BLOCK
    assert {name: tuple(value.shape) for name, value in there.items()} == shapes(block)
    assert (done.tensors, done.files) == (len(there), 1)
    assert done.nbytes == sum(value.nbytes for value in there.values())
    if weights != "fused":
        assert_equal(there, renamed(load(source)))
    convert(tmp_path / "there", tmp_path / "back", "hf")
    assert_equal(load(tmp_path / "back"), load(source))


def test_fused_tensors_are_the_single_ones_below_each_other(tmp_path: Path) -> None:
    source = nxai_folder(tmp_path / "single")
    convert(source, tmp_path / "fused", "xlstm_cuda", weights="fused")
    single, fused = load(source), load(tmp_path / "fused")
    layer, ffn = "backbone.blocks.1.mlstm_layer.", "backbone.blocks.1.ffn."
    for name, parts in {
        layer + "qkv_opreact.weight": [layer + part + ".weight" for part in ("q", "k", "v", "ogate_preact")],
        layer + "ifgate_preact.weight": [layer + part + ".weight" for part in ("igate_preact", "fgate_preact")],
        layer + "ifgate_preact.bias": [layer + part + ".bias" for part in ("igate_preact", "fgate_preact")],
        ffn + "proj_up_gate_z.weight": [ffn + part + ".weight" for part in ("proj_up_gate", "proj_up")],
    }.items():
        assert torch.equal(fused[name], torch.cat([single[part] for part in parts]))
    assert convert(tmp_path / "fused", tmp_path / "kept", "nxai", weights="fused").source_weights == "fused"
    assert_equal(load(tmp_path / "kept"), fused)


@pytest.mark.parametrize("to", WITH_NXAI_NAMES)
def test_biases(to: str, tmp_path: Path) -> None:
    """Of the last norm Hugging Face's model has none."""
    source = hf_folder(tmp_path / "hf", draw(torch.bfloat16, hf=True, bias=True), use_bias=True)
    convert(source, tmp_path / "there", to, weights="fused")
    convert(tmp_path / "there", tmp_path / "single", to)
    expected = renamed(load(source)) | {"backbone.out_norm.bias": torch.zeros(DIM).bfloat16()}
    assert_equal(load(tmp_path / "single"), expected)
    convert(tmp_path / "there", tmp_path / "back", "hf")
    assert_equal(load(tmp_path / "back"), load(source))
    other = nxai_folder(tmp_path / "nxai", draw(bias=True), use_bias=True)
    with pytest.raises(ValueError, match="out_norm.bias is not zero"):
        convert(other, tmp_path / "no", "hf")


def test_tied_embeddings(tmp_path: Path) -> None:
    tensors = draw(hf=True)
    del tensors["lm_head.weight"]
    convert(hf_folder(tmp_path / "hf", tensors, tie_word_embeddings=True), tmp_path / "nxai", "nxai")
    result = load(tmp_path / "nxai")
    assert torch.equal(result["lm_head.weight"], tensors["backbone.embeddings.weight"])
    assert torch.equal(result["embedding.weight"], tensors["backbone.embeddings.weight"])


def test_no_out_norm(tmp_path: Path) -> None:
    tensors = draw()
    del tensors["backbone.out_norm.weight"]
    source = nxai_folder(tmp_path / "nxai", tensors, add_out_norm=False)
    convert(source, tmp_path / "ours", "xlstm_cuda")
    assert_equal(load(tmp_path / "ours"), tensors)
    with pytest.raises(ValueError, match="add_out_norm=False"):
        convert(source, tmp_path / "hf", "hf")
    convert(hf_folder(tmp_path / "without", add_out_norm=False), tmp_path / "with", "nxai")  # its model has it anyway
    assert flat_yaml.loads((tmp_path / "with/config.yaml").read_text())["add_out_norm"] is True


def test_configs(tmp_path: Path) -> None:
    options = {"gate_soft_cap": 12.5, "norm_eps": 1e-5, "ffn_proj_factor": 2.9, "chunk_size": 32}
    source = hf_folder(tmp_path / "hf", **options)
    convert(source, tmp_path / "nxai", "nxai")
    nxai = flat_yaml.loads((tmp_path / "nxai/config.yaml").read_text())
    assert nxai.items() >= {**NXAI_CONFIG, **options, "weight_mode": "single", "eps": 1e-6}.items()
    assert nxai.items() >= {"mode": "inference", "return_last_states": True, "use_bias": False}.items()
    convert(tmp_path / "nxai", tmp_path / "ours", "xlstm_cuda", weights="fused")
    ours = json.loads((tmp_path / "ours/config.json").read_text())
    del options["chunk_size"]
    assert ours.items() >= {**NXAI_CONFIG, **options, "weight_mode": "fused"}.items()
    assert not ours.keys() & {"mode", "return_last_states", "chunkwise_kernel", "model_type"}  # defaults of our class
    convert(tmp_path / "ours", tmp_path / "back", "hf", dtype="bfloat16")
    back = json.loads((tmp_path / "back/config.json").read_text())
    assert back.items() >= {"model_type": "xlstm", "mode": "inference", "dtype": "bfloat16", **options}.items()
    assert (back["hidden_size"], back["num_hidden_layers"]) == (DIM, BLOCKS)
    convert(source, tmp_path / "same", "hf", weights="fused")
    same = json.loads((tmp_path / "same/config.json").read_text())
    assert same == {**json.loads((source / "config.json").read_text()), "weight_mode": "fused", "dtype": "float32"}


def test_sigmoid_gates_stay_and_are_not_for_hugging_face(tmp_path: Path) -> None:
    kernel = "chunkwise--triton_xl_chunk_siging"
    source = nxai_folder(tmp_path / "nxai", chunkwise_kernel=kernel)
    convert(source, tmp_path / "ours", "xlstm_cuda")
    assert json.loads((tmp_path / "ours/config.json").read_text())["chunkwise_kernel"] == kernel
    with pytest.raises(ValueError, match="no sigmoid input gates"):
        convert(source, tmp_path / "hf", "hf")


@pytest.mark.parametrize("to", LAYOUTS)
def test_shards(to: str, tmp_path: Path) -> None:
    source = nxai_folder(tmp_path / "nxai")
    done = convert(source, tmp_path / "shards", to, shard_size=100_000)
    files = sorted(file.name for file in (tmp_path / "shards").glob("*.safetensors"))
    assert done.files == len(files) > 3
    assert all((tmp_path / "shards" / file).stat().st_size < 110_000 for file in files)
    assert files == sorted(LAYOUTS[to].file_names(len(files)))
    assert (tmp_path / "shards/model.safetensors.index.json").exists() == LAYOUTS[to].has_index
    if LAYOUTS[to].has_index:
        index = json.loads((tmp_path / "shards/model.safetensors.index.json").read_text())
        assert sorted(set(index["weight_map"].values())) == files
        for file in files:
            names = {name for name, place in index["weight_map"].items() if place == file}
            assert load_file(tmp_path / "shards" / file).keys() == names
    convert(tmp_path / "shards", tmp_path / "whole", "nxai", weights="fused")
    convert(tmp_path / "whole", tmp_path / "back", "nxai")
    assert_equal(load(tmp_path / "back"), load(source))
    (tmp_path / "shards" / files[1]).unlink()
    with pytest.raises((ValueError, FileNotFoundError), match="missing"):
        convert(tmp_path / "shards", tmp_path / "no", "hf")


def test_names_of_files() -> None:
    """As the libraries look for them."""
    theirs = {name: (layout.file_names(2), layout.has_index) for name, layout in LAYOUTS.items()}
    assert theirs["hf"] == (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], True)
    assert theirs["nxai"] == (["model_0.safetensors", "model_1.safetensors"], False)
    assert theirs["xlstm_cuda"] == theirs["hf"]
    assert all(layout.file_names(1) == ["model.safetensors"] for layout in LAYOUTS.values())


@pytest.mark.parametrize("size", ["1GB", "1 gib", "500", 500, "2kb"])
def test_shard_sizes(size: int | str, tmp_path: Path) -> None:
    files = convert(nxai_folder(tmp_path / "nxai"), tmp_path / "out", "nxai", shard_size=size).files
    assert (files == 1) == (str(size).lower() in ("1gb", "1 gib"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt"])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("as_file", [False, True])
def test_pickled_sources(name: str, wrapper: str | None, as_file: bool, tmp_path: Path) -> None:
    source, tensors = nxai_folder(tmp_path / "nxai"), draw()
    (source / "model.safetensors").unlink()
    torch.save({wrapper: tensors, "step": 3} if wrapper else tensors, source / name)
    convert(source / name if as_file else source, tmp_path / "out", "nxai")
    assert_equal(load(tmp_path / "out"), tensors)


def test_dtypes(tmp_path: Path) -> None:
    tensors = {
        name: value.bfloat16() if "gate_preact" not in name else value for name, value in draw().items()
    }  # as some keep the gates
    source = nxai_folder(tmp_path / "nxai", tensors)
    convert(source, tmp_path / "kept", "nxai", weights="fused")
    kept = load(tmp_path / "kept")
    assert kept["backbone.blocks.0.mlstm_layer.ifgate_preact.bias"].dtype == torch.float32
    assert kept["backbone.blocks.0.mlstm_layer.qkv_opreact.weight"].dtype == torch.float32  # with the output gate
    convert(tmp_path / "kept", tmp_path / "half", "nxai", dtype=torch.float16)
    assert_equal(load(tmp_path / "half"), {name: value.half() for name, value in tensors.items()})


def test_values_too_large_for_the_dtype(tmp_path: Path) -> None:
    tensors = draw()
    tensors["lm_head.weight"][3, 2] = float("inf")
    source = nxai_folder(tmp_path / "infinite", tensors)
    convert(source, tmp_path / "half", "nxai", dtype="float16")
    assert load_large(source, dtype="float16").lm_head.weight.isinf().sum() == 1  # as it was
    tensors["backbone.blocks.1.ffn.proj_up.weight"][0, 0] = -1e5
    source = nxai_folder(tmp_path / "large", tensors)
    message = "blocks.1.ffn.proj_up.weight has values that are too large for float16"
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "out", "nxai", weights="fused", dtype="float16")
    with pytest.raises(ValueError, match=message):
        load_large(source, dtype="float16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("weights", ["single", "fused"])
def test_one_tensor_at_a_time(weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = hf_folder(tmp_path / "hf")
    read = sources._Safetensors.read
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def watched(self: Any, name: str, start: int, stop: int) -> Tensor:
        nonlocal most
        tensor = read(self, name, start, stop)
        alive.append(weakref.ref(tensor))
        most = max(most, sum(x() is not None for x in alive))
        return tensor

    monkeypatch.setattr(sources._Safetensors, "read", watched)
    convert(source, tmp_path / "out", "nxai", weights=weights, shard_size="10GB")
    assert len(alive) == len(shapes()) and most == 1


def test_only_the_rows_of_a_part_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(hf_folder(tmp_path / "hf"), tmp_path / "fused", "nxai", weights="fused")
    read = sources._Safetensors.read
    rows: list[tuple[int, int]] = []

    def watched(self: Any, name: str, start: int, stop: int) -> Tensor:
        if name == "backbone.blocks.0.mlstm_layer.qkv_opreact.weight":
            rows.append((start, stop))
        tensor = read(self, name, start, stop)
        assert tensor.shape[0] == stop - start
        return tensor

    monkeypatch.setattr(sources._Safetensors, "read", watched)
    convert(tmp_path / "fused", tmp_path / "single", "nxai")
    assert sorted(rows) == [(0, QK), (QK, 2 * QK), (2 * QK, 2 * QK + V), (2 * QK + V, 2 * QK + 2 * V)]


def test_tokenizers_come_along(tmp_path: Path) -> None:
    source = hf_folder(tmp_path / "hf")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "optimizer.bin"):
        (source / name).write_text(name)
    convert(source, tmp_path / "out", "xlstm_cuda")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json", "model.safetensors"),
    }


def test_all_that_is_wrong_is_in_one_message(tmp_path: Path) -> None:
    tensors = draw(hf=True)
    tensors["backbone.blocks.0.ffn.proj_up.weight"] = torch.zeros(3, DIM)
    tensors["backbone.blocks.2.norm_ffn.weight"] = torch.zeros(DIM)
    del tensors["lm_head.weight"], tensors["backbone.blocks.1.norm_mlstm.weight"]
    source = hf_folder(tmp_path / "hf", tensors)
    with pytest.raises(ValueError) as raised:
        convert(source, tmp_path / "out", "nxai")
    head, layout, *rows = str(raised.value).split("\n  ")
    assert "does not fit its config" in head and "Hugging Face" in layout
    assert rows == [
        "missing: backbone.blocks.1.norm_mlstm.weight (64,)",
        "missing: lm_head.weight (30, 64)",
        "extra: backbone.blocks.2.norm_ffn.weight (64,)",
        "wrong shape: backbone.blocks.0.ffn.proj_up.weight is (3, 64), expected (192, 64)",
    ]
    assert sorted(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["token_embedding.weight", "xlstm_block_stack.blocks.0.x"], "no xLSTMLarge, it looks like xLSTMLMModel"),
        (["module.embedding.weight"], "no xLSTMLarge, it looks like a model inside DataParallel"),
        (["something"], "no xLSTMLarge$"),
    ],
)
def test_other_models_are_refused(names: list[str], message: str, tmp_path: Path) -> None:
    source = nxai_folder(tmp_path / "nxai", {name: torch.zeros(2) for name in names})
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "out", "hf")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_heads": "two"}, "num_heads must be a positive integer, got 'two'"),
        ({"num_blocks": 0}, "num_blocks must be a positive integer, got 0"),
        ({"qk_dim_factor": -1}, "qk_dim_factor must be a positive number"),
        ({"model_type": "mamba"}, "model_type must be 'xlstm', got 'mamba'"),
        ({"use_bias": "false"}, "use_bias must be true or false, got 'false'"),
        ({"norm_eps": "1e-6"}, "norm_eps must be a number >= 0, got '1e-6'"),
        ({"eps": None}, "eps must be a number >= 0, got None"),
        ({"gate_soft_cap": "15"}, "gate_soft_cap must be None or a positive number, got '15'"),
        ({"v_dim_factor": float("inf")}, "v_dim_factor must be a positive number, got inf"),
        ({"chunkwise_kernel": None}, "chunkwise_kernel must be text, got None"),
        ({"v_dim_factor": 10**400}, "config.json: int too large"),
        ({"hidden_size": 10**400}, "embedding_dim is no size of a tensor"),
        ({"ffn_proj_factor": 1e308}, "ffn_proj_factor times embedding_dim is no size of a tensor: 1e.308"),
        ({"qk_dim_factor": 1e300}, "qk_dim_factor times embedding_dim is no size of a tensor: 1e.300"),
        ({"num_blocks": 10**12}, "the config has 1000000000000 blocks, the checkpoint 33 tensors"),
    ],
)
def test_wrong_configs(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        convert(hf_folder(tmp_path / "hf", **config), tmp_path / "out", "nxai")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[1]", r"config.json: must hold the fields of a config, got \[1\]"),
        (b"null", "config.json: must hold the fields of a config, got None"),
        (b"\xff", "config.json: 'utf-8' codec"),
        (b"", "config.json: Expecting value"),
        pytest.param(b"[" * 100_000, "config.json: .*recursion", id="deep"),
    ],
)
def test_damaged_configs(text: bytes, message: str, tmp_path: Path) -> None:
    source = hf_folder(tmp_path / "hf")
    (source / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "out", "nxai")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("", "it has no weight_map"),
        ("{}", "it has no weight_map"),
        ("[]", "it has no weight_map"),
        ('{"weight_map": {}}', "its weight_map names no files"),
        ('{"weight_map": {"a": 3}}', "its weight_map names no files"),
        ('{"weight_map": ["model.safetensors"]}', "it has no weight_map"),
    ],
)
def test_damaged_indices(index: str, message: str, tmp_path: Path) -> None:
    source = nxai_folder(tmp_path / "nxai")
    (source / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=f"index.json is damaged: {message}"):
        convert(source, tmp_path / "out", "hf")


@pytest.mark.parametrize("depth", [300, 900, 100_000])
def test_deeply_nested_json(depth: int, tmp_path: Path) -> None:
    """It is converted, or one ValueError: also where it can be read but not be written again."""
    source = hf_folder(tmp_path / "hf")
    config = json.loads((source / "config.json").read_text())
    text = json.dumps({**config, "deep": 0}).replace('"deep": 0', f'"deep": {"[" * depth}{"]" * depth}')
    (source / "config.json").write_text(text)
    try:
        convert(source, tmp_path / "out", "hf")
    except ValueError as error:
        assert str(error).startswith(f"convert: {source / 'config.json'}: ")
    (source / "model.safetensors.index.json").write_text('{"weight_map": ' + "[" * 100_000)
    with pytest.raises(ValueError, match="index.json is damaged: it has no weight_map"):
        convert(source, tmp_path / "no", "hf")


@pytest.mark.parametrize(
    "name", ["../other/model.safetensors", "{absolute}", "sub/model.safetensors", "..", "a\\b", "C:x"]
)
def test_an_index_names_files_beside_it(name: str, tmp_path: Path) -> None:
    source, other = nxai_folder(tmp_path / "nxai"), nxai_folder(tmp_path / "other")
    shutil.copytree(other, source / "sub")
    name = name.format(absolute=other / "model.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(draw(), name)}))
    with pytest.raises(ValueError, match="its weight_map may name files beside it only, got"):
        convert(source, tmp_path / "out", "hf")


def test_files_may_be_links(tmp_path: Path) -> None:
    """As all are in the cache of Hugging Face's hub."""
    source, blobs = nxai_folder(tmp_path / "nxai"), tmp_path / "blobs"
    blobs.mkdir()
    (source / "model.safetensors").rename(blobs / "0123")
    (source / "model.safetensors").symlink_to("../blobs/0123")
    index = {"weight_map": dict.fromkeys(draw(), "model.safetensors")}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    convert(source, tmp_path / "out", "hf")


def test_tensors_without_their_values_in_the_file(tmp_path: Path) -> None:
    """A file of a few bytes must not become terabytes."""
    source = nxai_folder(tmp_path / "nxai")
    config = (source / "config.yaml").read_text()
    (source / "config.yaml").write_text(re.sub("vocab_size: .*", f"vocab_size: {2**50}", config))
    for shape in ((2**50, DIM), (2**62, 2**62)):
        huge = torch.zeros(1, 1).expand(2**50, DIM) if shape[1] == DIM else torch.zeros(0, 1).expand(0, 2**62)
        torch.save({**draw(), "embedding.weight": huge, "lm_head.weight": huge}, source / "other.pt")
        with pytest.raises(ValueError, match="embedding.weight (has shape .*, but not that many values)|does not fit"):
            convert(source / "other.pt", tmp_path / "out", "nxai")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_tensor_in_two_files_is_refused(suffix: str, tmp_path: Path) -> None:
    """Two checkpoints in a folder: neither is taken by chance."""
    source = nxai_folder(tmp_path / "nxai")
    (source / "model.safetensors").unlink()
    for name in ("best", "last"):
        path = source / f"{name}.{suffix}"
        save_file(draw(), path) if suffix == "safetensors" else torch.save(draw(), path)
    with pytest.raises(ValueError, match=rf"weight is in .*best.{suffix} and in .*last.{suffix}; give one file"):
        convert(source, tmp_path / "out", "hf")
    convert(source / f"last.{suffix}", tmp_path / "out", "hf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.long(), "has dtype torch.int64, which is not converted"),
        (lambda x: x.cfloat(), "has dtype torch.complex64, which is not converted"),
        (lambda x: x.to_sparse(), "is a torch.sparse_coo tensor"),
        (lambda x: x.to("meta"), "is a meta tensor"),
    ],
)
def test_tensors_that_are_no_weights(change: Any, message: str, tmp_path: Path) -> None:
    source, tensors = nxai_folder(tmp_path / "nxai"), draw()
    tensors["embedding.weight"] = change(tensors["embedding.weight"])
    torch.save(tensors, source / "other.pt")
    with pytest.raises(ValueError, match=f"other.pt: embedding.weight {message}"):
        convert(source / "other.pt", tmp_path / "out", "hf")
    assert not (tmp_path / "out").exists()


class Command:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_pickle_is_executed(tmp_path: Path) -> None:
    source = nxai_folder(tmp_path / "nxai")
    torch.save({**draw(), "extra": Command(tmp_path / "executed")}, source / "evil.pt")
    with pytest.raises(ValueError, match="holds objects other than tensors") as raised:
        convert(source / "evil.pt", tmp_path / "out", "hf")
    assert "weights_only" not in str(raised.value)  # torch's own text advises to switch that off
    assert not (tmp_path / "executed").exists()


def test_files_of_old_versions_of_torch(tmp_path: Path) -> None:
    source = nxai_folder(tmp_path / "nxai")
    torch.save(draw(), source / "old.pt", _use_new_zipfile_serialization=False)
    convert(source / "old.pt", tmp_path / "out", "nxai")
    assert_equal(load(tmp_path / "out"), draw())
    torch.save({1: torch.zeros(2)}, source / "numbers.pt")
    with pytest.raises(ValueError, match="no xLSTMLarge"):
        convert(source / "numbers.pt", tmp_path / "no", "nxai")


def test_only_an_embedding(tmp_path: Path) -> None:
    source = nxai_folder(tmp_path / "nxai", {"embedding.weight": torch.zeros(VOCAB, DIM)}, num_blocks=1)
    with pytest.raises(ValueError, match=r"does not fit its config:\n  missing: backbone.blocks.0.norm_mlstm.weight"):
        convert(source, tmp_path / "out", "hf")


def test_wrong_sources(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder or file"):
        convert(tmp_path / "nothing", tmp_path / "out", "hf")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        convert(tmp_path / "empty", tmp_path / "out", "hf")
    source = nxai_folder(tmp_path / "nxai")
    (source / "config.yaml").write_text("embedding_dim: 64\nlist:\n  - 3\n")
    with pytest.raises(ValueError, match="config.yaml: line 3 is not of the form"):
        convert(source, tmp_path / "out", "hf")
    (source / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match="has no config.yaml or config.json"):
        convert(source, tmp_path / "out", "hf")
    (source / "model.safetensors").write_bytes(b"123456789")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        convert(source, tmp_path / "out", "hf")
    (source / "other.pt").write_bytes(b"123456789")
    with pytest.raises(ValueError, match="other.pt cannot be loaded"):
        convert(source / "other.pt", tmp_path / "out", "hf")
    save_file({"embedding.weight": torch.zeros(2, dtype=torch.float8_e4m3fn)}, source / "model.safetensors")
    with pytest.raises(ValueError, match="embedding.weight has dtype F8_E4M3, which is not converted"):
        convert(source, tmp_path / "out", "hf")
    torch.save([1, 2], source / "list.pt")
    with pytest.raises(ValueError, match="list.pt holds no state dict but list"):
        convert(source / "list.pt", tmp_path / "out", "hf")


@pytest.mark.parametrize(
    "options", [{"to": "onnx"}, {"weights": "both"}, {"dtype": "int8"}, {"shard_size": "5 apples"}, {"shard_size": 0}]
)
def test_wrong_options(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        convert(nxai_folder(tmp_path / "nxai"), tmp_path / "out", **{"to": "hf", **options})


def test_existing_targets(tmp_path: Path) -> None:
    source = nxai_folder(tmp_path / "nxai")
    target = tmp_path / "out"
    convert(source, target, "nxai")
    (target / "mine").touch()
    with pytest.raises(FileExistsError, match="exists; --overwrite replaces it"):
        convert(source, target, "hf")
    assert (target / "mine").exists()
    convert(source, target, "hf", overwrite=True)
    assert {path.name for path in target.iterdir()} == {"config.json", "model.safetensors"}
    (tmp_path / "home").mkdir()
    (tmp_path / "home/precious").touch()
    with pytest.raises(FileExistsError, match="is not the folder of a checkpoint"):
        convert(source, tmp_path / "home", "hf", overwrite=True)
    (tmp_path / "home/config.json").touch()  # as many other programs have
    with pytest.raises(FileExistsError, match="is not the folder of a checkpoint"):
        convert(source, tmp_path / "home", "hf", overwrite=True)
    assert (tmp_path / "home/precious").exists()
    for folder in (source, tmp_path):
        with pytest.raises(ValueError, match="holds the source"):
            convert(source, folder, "hf", overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"home", "nxai", "out"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_half_written_stays(overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = nxai_folder(tmp_path / "nxai")
    if overwrite:
        shutil.copytree(source, tmp_path / "out")
    read, calls = sources._Safetensors.read, 0

    def failing(self: Any, *place: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt
        return read(self, *place)

    monkeypatch.setattr(sources._Safetensors, "read", failing)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", "hf", overwrite=overwrite)
    assert {path.name for path in tmp_path.iterdir()} == {"nxai", *(["out"] if overwrite else [])}
    if overwrite:
        assert_equal(load(tmp_path / "out"), load(source))


def test_targets_that_are_links_or_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = nxai_folder(tmp_path / "nxai")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(FileExistsError, match="link exists"):
        convert(source, tmp_path / "link", "hf")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    convert(source, ".", "nxai", overwrite=True)
    assert_equal(load(tmp_path / "here"), load(source))
    assert {path.name for path in tmp_path.iterdir()} == {"here", "link", "nxai"}


def test_interrupted_in_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two renames, where names cannot be exchanged: the old folder comes back."""
    monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    source = nxai_folder(tmp_path / "nxai")
    shutil.copytree(source, tmp_path / "out")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", "hf", overwrite=True)
    assert_equal(load(tmp_path / "out"), load(source))
    assert {path.name for path in tmp_path.iterdir()} == {"nxai", "out"}


KILLED = """
import os, signal, sys
from pathlib import Path
from xlstm_cuda.interop.checkpoints import convert, folders

source, target, moment = sys.argv[1:]
exchange, rename = folders._exchange, Path.rename

def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def then_killed(call):
    return lambda *args: (call(*args), killed())

if moment == "before":
    folders._exchange = Path.rename = killed
elif moment == "exchanged":
    folders._exchange = Path.rename = then_killed(exchange)
else:  # between the two renames of a system that cannot exchange
    folders._exchange = lambda *_: False
    Path.rename = then_killed(rename)
convert(source, target, "hf", overwrite=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL")
@pytest.mark.parametrize("moment", ["before", "exchanged", "between renames"])
def test_killed_in_the_last_moment(moment: str, tmp_path: Path) -> None:
    """The target is there, old or new; where names cannot be exchanged, the next call brings it back and tidies up."""
    source, target = nxai_folder(tmp_path / "nxai"), tmp_path / "out"
    shutil.copytree(source, target)
    other = tmp_path / ".out.12345678.mine"
    other.mkdir()
    run = subprocess.run([sys.executable, "-c", KILLED, source, target, moment], cwd=tmp_path, env=with_root())
    assert run.returncode == -signal.SIGKILL
    assert target.exists() or moment == "between renames"
    with pytest.raises(FileExistsError, match="out exists; --overwrite replaces it"):
        convert(source, target, "hf")
    is_new = "backbone.embeddings.weight" in load(target)  # a file system that cannot exchange leaves the old one
    assert not is_new or moment == "exchanged"
    assert_equal(renamed(load(target)), load(source))
    assert {path.name for path in tmp_path.iterdir()} == {"nxai", "out", other.name}
    convert(source, target, "hf", overwrite=True)
    assert "backbone.embeddings.weight" in load(target)
    assert_equal(renamed(load(target)), load(source))


def with_root() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_a_running_call_is_left_alone(tmp_path: Path) -> None:
    source, target = nxai_folder(tmp_path / "nxai"), tmp_path / "out"
    with folders.new_folder(target, False) as new:
        convert(source, target, "nxai")
        assert new.exists()
        (new / "config.json").touch()
        (new / "model.safetensors").touch()
    assert {path.name for path in tmp_path.iterdir()} == {"nxai", "out"}
    assert {path.name for path in target.iterdir()} == {"config.json", "model.safetensors"}


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(targets, "_write_data", full)
    with pytest.raises(OSError, match=r"No space left on device: .*model.safetensors"):
        convert(nxai_folder(tmp_path / "nxai"), tmp_path / "out", "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["nxai"]


def test_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = nxai_folder(tmp_path / "nxai")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"need the package safetensors: pip install 'xlstm-cuda\[convert\]'"):
        convert(source, tmp_path / "out", "hf")
    torch.save(draw(), source / "model.pt")
    convert(source / "model.pt", tmp_path / "out", "hf")
    monkeypatch.undo()
    assert_equal(renamed(load(tmp_path / "out")), draw())


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = nxai_folder(tmp_path / "nxai"), tmp_path / "out"
    arguments = ["convert", str(source), str(target), "--to", "hf", "--weights", "fused", "--dtype", "bfloat16"]
    monkeypatch.setattr(sys, "argv", ["xlstm_cuda", *arguments, "--shard-size", "50KB"])
    __main__.main()
    assert capsys.readouterr().out.startswith("nxai / xlstm_cuda (single) -> hf (fused): 21 tensors, ")
    assert {value.dtype for value in load(target).values()} == {torch.bfloat16}
    with pytest.raises(SystemExit) as raised:
        __main__.main()
    assert str(raised.value) == f"convert: {target} exists; --overwrite replaces it"
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--overwrite"])
    __main__.main()

    def interrupted(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(targets, "_write_data", interrupted)
    with pytest.raises(SystemExit) as raised:
        __main__.main()
    assert raised.value.code == 130 and len(load(target)) == 21


def test_yaml() -> None:
    fields = {"a": 1, "b": 1e-6, "c": True, "d": None, "e": "native_sequence__native", "f": 2.5, "g": 1e300}
    assert flat_yaml.loads(flat_yaml.dumps(fields)) == fields
    assert "1.0e-06" in flat_yaml.dumps(fields)  # YAML 1.1 reads 1e-06 as text
    text = "---\n# comment\n\na: 1 # comment\nb:  chunkwise--triton_xl_chunk\nc: 'x'\nd: null\ne: False\nf: 1e-6\ng:\n"
    expected = {"a": 1, "b": "chunkwise--triton_xl_chunk", "c": "x", "d": None, "e": False, "f": 1e-6, "g": None}
    assert flat_yaml.loads(text) == expected
    for wrong in ("a: [1, 2]", "a: {b: 1}", "- a", "a: &b 1", "  a: 1", "a"):
        with pytest.raises(ValueError, match="line 1 is not of the form"):
            flat_yaml.loads(wrong)
