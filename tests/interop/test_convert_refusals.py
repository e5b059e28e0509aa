"""What convert refuses: other models, wrong or damaged configs, indices, tensors and options."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.checkpoints import DIM, VOCAB, assert_equal, draw, hf_folder, load, nxai_folder
from xlstm_cuda.interop.checkpoints import convert

pytest.importorskip("safetensors")
from safetensors.torch import save_file  # noqa: E402


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
