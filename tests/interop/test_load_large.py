"""load_large: converted checkpoints as models of this library."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from xlstm_cuda.interop.checkpoints import convert, load_large
from xlstm_cuda.interop.checkpoints.layouts import LAYOUTS
from xlstm_cuda.models import xLSTMLarge, xLSTMLargeConfig
from xlstm_cuda.testing import assert_close_relative

pytest.importorskip("safetensors")
from safetensors.torch import save_file  # noqa: E402

SIZES: dict[str, Any] = {"embedding_dim": 32, "num_heads": 2, "num_blocks": 2, "vocab_size": 30, "v_dim_factor": 2.0}


def build(**options: Any) -> xLSTMLarge:
    model = xLSTMLarge(xLSTMLargeConfig(**SIZES, **options)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def save(model: xLSTMLarge, folder: Path) -> Path:
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(asdict(model.config)))
    return folder


def logits(model: xLSTMLarge) -> Tensor:
    ids = torch.randint(30, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        result = model(ids)
    assert isinstance(result, Tensor)
    return result


@pytest.mark.parametrize("to", LAYOUTS)
@pytest.mark.parametrize("stored", ["single", "fused"])
@pytest.mark.parametrize("loaded", [None, "single", "fused"])
def test_every_layout(to: str, stored: str, loaded: str | None, tmp_path: Path) -> None:
    model = build(gate_soft_cap=3.0, output_logit_soft_cap=2.0, norm_eps=1e-3, eps=1e-3, ffn_proj_factor=3.1)
    convert(save(model, tmp_path / "source"), tmp_path / "out", to, weights=stored, shard_size="20KB")
    fields = {} if loaded is None else {"weight_mode": loaded}
    twin = load_large(tmp_path / "out", **fields)
    assert twin.config.weight_mode == (loaded or stored) and not twin.training
    if twin.config.weight_mode == "single":
        assert twin.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in twin.state_dict().items())
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in twin.parameters())
    # No layout rounds a weight: in float64 only the order of sums differs, of some hundred terms in each of ten layers.
    assert_close_relative(logits(twin.double()), logits(model.double()), 1e-12, "logits")


def test_how_it_is_run_is_the_callers_choice(tmp_path: Path) -> None:
    convert(save(build(), tmp_path / "source"), tmp_path / "hf", "hf")  # says inference and return_last_states
    assert load_large(tmp_path / "hf").config == xLSTMLargeConfig(**SIZES)
    model = load_large(tmp_path / "hf", mode="inference", dtype="bfloat16")
    assert model.config.mode == "inference"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_mixed_dtypes_become_one(tmp_path: Path) -> None:
    """Layers compute in one dtype: a model of two does not run."""
    source = save(build(), tmp_path / "source")
    values = build().state_dict()
    save_file({n: x if "gate" in n else x.bfloat16() for n, x in values.items()}, source / "model.safetensors")
    model = load_large(source)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert logits(model).isfinite().all()


def test_refused(tmp_path: Path) -> None:
    model = build()
    source = save(model, tmp_path / "source")
    with pytest.raises(TypeError, match="colour"):
        load_large(source, colour="red")
    state_dict = model.state_dict()
    del state_dict["lm_head.weight"]
    save_file(state_dict, source / "model.safetensors")
    with pytest.raises(ValueError, match="missing: lm_head.weight"):
        load_large(source)
