"""Converted checkpoints in the models of transformers and of the package xlstm: the same logits."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xlstm_cuda.interop.checkpoints import convert
from xlstm_cuda.testing import assert_close_relative

os.environ["HF_HUB_OFFLINE"] = "1"
yaml = pytest.importorskip("yaml")
transformers = pytest.importorskip("transformers")
modeling = pytest.importorskip("transformers.models.xlstm.modeling_xlstm")
large = pytest.importorskip("xlstm.xlstm_large.model")
from_pretrained = pytest.importorskip("xlstm.xlstm_large.from_pretrained")
pytest.importorskip("safetensors")

NATIVE = {"chunkwise_kernel_name": "chunkwise--native_autograd", "sequence_kernel_name": "native_sequence__native"}


def tokens() -> Tensor:
    return torch.randint(31, (2, 20), generator=torch.Generator().manual_seed(1))


def randomise(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def hugging_face(**options: Any) -> Any:
    """None of the sizes and factors is the default."""
    sizes = {"vocab_size": 31, "hidden_size": 96, "num_hidden_layers": 2, "num_heads": 3, "v_dim_factor": 2.0}
    config = transformers.xLSTMConfig(**sizes, ffn_proj_factor=2.1, gate_soft_cap=9.0, **options)
    model = transformers.xLSTMForCausalLM(config).eval()
    randomise(model)
    return model


def nxai(folder: Path) -> Any:
    """Built from the files without our code."""
    fields = yaml.safe_load((folder / "config.yaml").read_text())
    model = large.xLSTMLarge(large.xLSTMLargeConfig(**fields)).eval()
    from safetensors.torch import load_file

    state_dict: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        state_dict.update(load_file(file))
    model.load_state_dict(state_dict)
    return model


@pytest.mark.parametrize("weights", ["single", "fused"])
@pytest.mark.parametrize("use_bias", [False, True])
def test_hugging_face_to_nxai_and_back(weights: str, use_bias: bool, tmp_path: Path) -> None:
    source = hugging_face(use_bias=use_bias)
    source.save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "nxai", "nxai", weights=weights, shard_size="200KB")
    convert(tmp_path / "nxai", tmp_path / "back", "hf", shard_size="200KB")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    with torch.no_grad():
        expected = source(tokens(), use_cache=False).logits
        assert_close_relative(nxai(tmp_path / "nxai")(tokens())[0], expected, 1e-5)
        assert torch.equal(back(tokens(), use_cache=False).logits, expected)
    for name, value in source.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name


def test_their_own_loader(tmp_path: Path) -> None:
    source = hugging_face()
    source.save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "nxai", "nxai", shard_size="200KB")
    model = from_pretrained.load_from_pretrained(tmp_path / "nxai", step_kernel_name="native", **NATIVE)
    with torch.no_grad():
        expected = source(tokens(), use_cache=False).logits
        assert_close_relative(model.eval()(tokens())[0], expected, 1e-5)


@pytest.mark.parametrize("shards", ["1GB", "100KB"])
def test_nxai_to_hugging_face(shards: str, tmp_path: Path) -> None:
    sizes = {"embedding_dim": 64, "num_heads": 2, "num_blocks": 3, "vocab_size": 31, "gate_soft_cap": 15}
    run = {"chunkwise_kernel": "chunkwise--native_autograd", "mode": "train", "return_last_states": True}
    config = large.xLSTMLargeConfig(
        **sizes, **run, sequence_kernel="native_sequence__native", step_kernel="native", chunk_size=20
    )
    model = large.xLSTMLarge(config).eval()
    randomise(model)
    (tmp_path / "nxai").mkdir()
    (tmp_path / "nxai/config.yaml").write_text(yaml.safe_dump(vars(config)))
    torch.save(model.state_dict(), tmp_path / "nxai/model.pt")
    convert(tmp_path / "nxai", tmp_path / "hf", "hf", shard_size=shards)
    converted = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        assert_close_relative(converted(tokens(), use_cache=False).logits, model(tokens())[0], 1e-5)


@pytest.mark.skipif(transformers.__version__ >= "5", reason="transformers 5 fails in its initial values")
def test_fused_for_hugging_face(tmp_path: Path) -> None:
    source = hugging_face()
    source.save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "fused", "hf", weights="fused", dtype="bfloat16")
    options = {"dtype": "auto", "output_loading_info": True}
    fused, loading = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "fused", **options)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert fused.dtype == torch.bfloat16 and fused.config.weight_mode == "fused"
    with torch.no_grad():
        actual = fused.float().eval()(tokens(), use_cache=False).logits
        assert_close_relative(actual, source(tokens(), use_cache=False).logits, 2e-2)


@pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4 cannot save a tied xLSTM")
def test_tied_embeddings(tmp_path: Path) -> None:
    source = hugging_face(tie_word_embeddings=True)
    source.save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "nxai", "nxai")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        assert_close_relative(nxai(tmp_path / "nxai")(tokens())[0], loaded(tokens(), use_cache=False).logits, 1e-5)


def test_defaults_of_their_configs(tmp_path: Path) -> None:
    """What a config.json leaves out is what transformers takes."""
    from xlstm_cuda.interop.checkpoints.configs import read
    from xlstm_cuda.interop.checkpoints.layouts import LAYOUTS

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "xlstm"}))
    _, fields, _ = read(tmp_path, [LAYOUTS["hf"]])
    theirs = transformers.xLSTMConfig()
    assert fields == {name: getattr(theirs, name) for name in fields}
    (tmp_path / "config.yaml").write_text("embedding_dim: 8\nnum_heads: 2\nnum_blocks: 3\nvocab_size: 4\n")
    _, fields, _ = read(tmp_path, [LAYOUTS["nxai"]])
    config = large.xLSTMLargeConfig(embedding_dim=8, num_heads=2, num_blocks=3, vocab_size=4)
    assert fields == {name: getattr(config, name) for name in fields}
