"""Pickles of before the move of xlstm_cuda.integrations to xlstm_cuda.interop."""

from __future__ import annotations

import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.nxai_models import CONFIGS, build, ids
from xlstm_cuda import patch

ROOT = Path(__file__).parents[3]
PROGRAM = """
import pickle, sys, torch
import tests.interop.peers.conftest  # hides the packages that are hidden here
with open(sys.argv[1], "rb") as file:
    model, ids, expected = pickle.load(file)
with torch.no_grad():
    output = model(ids)
assert torch.equal(output[0] if isinstance(output, tuple) else getattr(output, "logits", output), expected)
print(*sorted({type(module).__module__ for module in model.modules()}))
"""
NATIVE = {
    "chunkwise_kernel": "chunkwise--native_autograd",
    "sequence_kernel": "native_sequence__native",
    "step_kernel": "native",
}


def language_model() -> nn.Module:
    xlstm = pytest.importorskip("xlstm")
    model = xlstm.xLSTMLMModel(build(xlstm, xlstm, **CONFIGS["mixed"]))
    model.reset_parameters()
    patch(model)
    return model


def large_model() -> nn.Module:
    large = pytest.importorskip("xlstm.xlstm_large.model")
    sizes = {"embedding_dim": 64, "num_heads": 2, "num_blocks": 2, "vocab_size": 29}
    model = large.xLSTMLarge(large.xLSTMLargeConfig(**sizes, **NATIVE, mode="inference", return_last_states=True))
    patch(model)
    return model


def transformers_model() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("transformers.models.xlstm")
    from xlstm_cuda.interop import transformers as ours

    sizes = {"vocab_size": 29, "hidden_size": 128, "num_hidden_layers": 2, "num_heads": 2}
    model = transformers.xLSTMForCausalLM(transformers.xLSTMConfig(**sizes, autocast_kernel_dtype="float32"))
    ours.patch(model)
    return model


def under_former_names(pickled: Any, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The pickle that was written when our classes and functions said that they are of xlstm_cuda.integrations."""
    for name, module in [*sys.modules.items()]:
        if name.startswith("xlstm_cuda.interop."):
            former = name.replace(".interop.", ".integrations.")
            import_module(former)
            for value in vars(module).values():
                if getattr(value, "__module__", None) == name and hasattr(value, "__qualname__"):
                    monkeypatch.setattr(value, "__module__", former)
    written = pickle.dumps(pickled)
    monkeypatch.undo()
    assert b"xlstm_cuda.interop" not in written and b"xlstm_cuda.integrations" in written
    return written


@pytest.mark.parametrize("model", [language_model, large_model, transformers_model])
def test_loads_in_a_new_process(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patched = model().eval()
    with torch.no_grad():
        output = patched(ids())
    expected = output[0] if isinstance(output, tuple) else getattr(output, "logits", output)
    (tmp_path / "old.pkl").write_bytes(under_former_names((patched, ids(), expected), monkeypatch))
    call = [sys.executable, "-c", PROGRAM, tmp_path / "old.pkl"]
    modules = subprocess.run(call, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "xlstm_cuda.interop" in modules and "xlstm_cuda.integrations" not in modules
