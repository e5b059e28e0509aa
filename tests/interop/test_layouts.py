"""A layout of checkpoints is one class: one that is defined here is converted to and from as those of the library."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from xlstm_cuda import __main__
from xlstm_cuda.interop.checkpoints import convert, load_large
from xlstm_cuda.interop.checkpoints.fields import MODEL, SIZES
from xlstm_cuda.interop.checkpoints.layouts import LAYOUTS, OURS, Layout
from xlstm_cuda.interop.checkpoints.parts import EMBEDDING, HEAD, OUT_NORM_BIAS, part_shapes
from xlstm_cuda.models import xLSTMLarge, xLSTMLargeConfig
from xlstm_cuda.nn.loading import likely_layout

pytest.importorskip("safetensors")
from safetensors.torch import load_file, save_file  # noqa: E402

SIZE: dict[str, Any] = {"embedding_dim": 32, "num_heads": 2, "num_blocks": 2, "vocab_size": 30}


class Toy(Layout):
    """Nothing is as in another layout: names, fields, files, what it lacks and what it shares."""

    name = "toy"
    model = "the toy's model"
    config_file = "toy.json"
    has_index = False

    def tensor_name(self, name: str) -> str | None:
        if name == OUT_NORM_BIAS:
            return None
        name = {EMBEDDING: "tokens/table", HEAD: "tokens/head"}.get(name, name)
        return name.replace("backbone.blocks.", "layer_").replace("qkv_opreact", "in").replace(".", "/")

    def weight_mode(self, names: Iterable[str]) -> str:
        return "fused" if any("/in/" in name for name in names) else "single"

    def tied(self, config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
        return {HEAD: EMBEDDING} if config["tied"] else {}

    def fields(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return super().fields({**config["others"], **dict(zip(SIZES, config["sizes"], strict=True))})

    def config(self, fields: Mapping[str, Any], source: Mapping[str, Any] | None = None) -> dict[str, Any]:
        others = {name: value for name, value in fields.items() if name not in SIZES}
        kept = {"note": source["note"]} if source else {}
        return {**kept, "sizes": [fields[name] for name in SIZES], "others": others, "tied": False}

    def check(self, fields: Mapping[str, Any]) -> None:
        if fields["num_blocks"] > 3:
            raise ValueError(f"convert: {self.model} has three blocks at most, got {fields['num_blocks']}")

    def file_names(self, count: int) -> list[str]:
        return [f"{n}.safetensors" for n in range(count)]


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYOUTS, "toy", Toy())


def saved(folder: Path, **options: Any) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint of this library, of random values, without the bias that the toy lacks."""
    config = xLSTMLargeConfig(**{**SIZE, **options})
    tensors = {name: torch.randn(x.shape) for name, x in xLSTMLarge(config).state_dict().items()}
    if OUT_NORM_BIAS in tensors:
        tensors[OUT_NORM_BIAS].zero_()
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**SIZE, **options}))
    return folder, tensors


def load(folder: Path) -> dict[str, Tensor]:
    return {name: x for file in folder.glob("*.safetensors") for name, x in load_file(file).items()}


@pytest.mark.parametrize("way", LAYOUTS)
@pytest.mark.parametrize("weights", ["single", "fused"])
def test_there_and_back(way: str, weights: str, fresh_seed: int, tmp_path: Path) -> None:
    """By way of every other layout."""
    source, tensors = saved(tmp_path / "source", use_bias=True, gate_soft_cap=3.0, weight_mode=weights)
    convert(source, tmp_path / "toy", "toy", weights=weights, shard_size="20KB")
    assert (tmp_path / "toy" / "3.safetensors").exists() and not list((tmp_path / "toy").glob("*index*"))
    there = load(tmp_path / "toy")
    assert {"tokens/table", "tokens/head", "layer_1/norm_mlstm/weight"} < there.keys()
    assert ("layer_0/mlstm_layer/in/weight" in there) == (weights == "fused")
    assert len(there) == len(tensors) - 1  # without the bias

    done = convert(tmp_path / "toy", tmp_path / "way", way)
    assert (done.source_layout, done.source_weights) == ("toy", weights)
    convert(tmp_path / "way", tmp_path / "again", "toy", weights=weights)
    convert(tmp_path / "again", tmp_path / "back", "xlstm_cuda", weights=weights)
    back = load(tmp_path / "back")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], x) for name, x in tensors.items())
    model = load_large(tmp_path / "again")
    assert model.config == xLSTMLargeConfig(**SIZE, use_bias=True, gate_soft_cap=3.0, weight_mode=weights)
    assert all(torch.equal(model.state_dict()[name], x) for name, x in tensors.items())


def test_what_it_shares(tmp_path: Path) -> None:
    convert(saved(tmp_path / "source")[0], tmp_path / "toy", "toy")
    tensors = load(tmp_path / "toy")
    del tensors["tokens/head"]
    save_file(tensors, tmp_path / "toy" / "0.safetensors")
    with pytest.raises(ValueError, match="missing: tokens/head"):
        load_large(tmp_path / "toy")
    config = json.loads((tmp_path / "toy" / "toy.json").read_text())
    (tmp_path / "toy" / "toy.json").write_text(json.dumps({**config, "tied": True, "note": "mine"}))
    model = load_large(tmp_path / "toy")
    assert torch.equal(model.lm_head.weight, tensors["tokens/table"])
    convert(tmp_path / "toy", tmp_path / "same", "toy", weights="fused")
    assert json.loads((tmp_path / "same" / "toy.json").read_text())["note"] == "mine"


def test_what_it_cannot_hold(tmp_path: Path) -> None:
    source, _ = saved(tmp_path / "deep", num_blocks=4)
    with pytest.raises(ValueError, match="the toy's model has three blocks at most, got 4"):
        convert(source, tmp_path / "toy", "toy")
    source, tensors = saved(tmp_path / "bias", use_bias=True)
    save_file({**tensors, OUT_NORM_BIAS: torch.ones(32)}, source / "model.safetensors")
    with pytest.raises(ValueError, match=f"{OUT_NORM_BIAS} is not zero, and the toy's model has no such bias"):
        convert(source, tmp_path / "toy", "toy")


def test_it_is_known_wherever_layouts_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = saved(tmp_path / "source")
    convert(source, tmp_path / "toy", "toy")
    convert(source, tmp_path / "toy", "toy", overwrite=True)  # it is the folder of a checkpoint
    (tmp_path / "toy" / "toy.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"toy has no toy\.json"):
        convert(tmp_path / "toy", tmp_path / "back", "hf")
    with pytest.raises(ValueError, match=f"to must be one of {', '.join(LAYOUTS)}, got 'other'"):
        convert(source, tmp_path / "out", "other")
    monkeypatch.setattr(sys, "argv", ["xlstm_cuda", "convert", "--help"])
    with pytest.raises(SystemExit):
        __main__.main()
    assert "toy (the toy's model)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("weights", ["single", "fused"])
def test_models_name_it_where_a_checkpoint_does_not_fit(layout: str, weights: str) -> None:
    """By a table in nn/loading.py, which must not import this registry: tensors of other names need a row there."""
    own, names = (way.tensors(part_shapes({**MODEL, **SIZE}), weights) for way in (OURS, LAYOUTS[layout]))
    hint = f"xLSTMLarge with weight_mode={weights!r}" if names.keys() == own.keys() else "python -m xlstm_cuda convert"
    assert hint in str(likely_layout(names))
