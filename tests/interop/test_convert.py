"""Checkpoints of xLSTMLarge converted between layouts: names, values bit by bit, files and memory."""

from __future__ import annotations

import json
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.checkpoints import (
    BLOCK,
    BLOCKS,
    DIM,
    FUSED_BLOCK,
    NXAI_CONFIG,
    QK,
    WITH_NXAI_NAMES,
    V,
    assert_equal,
    draw,
    hf_folder,
    load,
    nxai_folder,
    renamed,
    shapes,
)
from xlstm_cuda import __main__
from xlstm_cuda.interop.checkpoints import convert, flat_yaml, load_large, sources, targets
from xlstm_cuda.interop.checkpoints.layouts import LAYOUTS

pytest.importorskip("safetensors")
from safetensors.torch import load_file  # noqa: E402


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
