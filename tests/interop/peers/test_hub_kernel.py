"""The folder for the Hugging Face Hub with the package `kernels` and its checker."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.interop.test_hub_kernel import written
from tests.support.paths import ROOT
from tools import hub_kernel

pytest.importorskip("kernels")
pytestmark = pytest.mark.slow  # make test-packages

PROGRAM = """
import os, sys
from pathlib import Path
os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from torch import nn
from kernels import LocalLayerRepository, Mode, get_local_kernel, kernelize, register_kernel_mapping
from kernels import use_kernel_forward_from_hub

folder = Path(sys.argv[1])
module = get_local_kernel(folder, backend="cpu")
q, k, v = torch.randn(3, 1, 2, 30, 8)
i, f = torch.randn(2, 1, 2, 30)
h = module.mlstm(q, k, v, i, f)
torch.testing.assert_close(h, module.mlstm(q, k, v, i, f, backend="reference"), rtol=1e-4, atol=1e-4)
if len(sys.argv) > 2:  # a namespace of its own: beside the installed package
    import xlstm_cuda
    assert torch.equal(xlstm_cuda.mlstm(q, k, v, i, f), h) and xlstm_cuda.MLSTMState is not module.MLSTMState


@use_kernel_forward_from_hub("SiluAndMul")
class SiluAndMul(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("this forward is replaced")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.act = nn.Linear(4, 6), SiluAndMul()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.up(x))


register_kernel_mapping({"SiluAndMul": {"cpu": LocalLayerRepository(folder, layer_name="SiluAndMul")}})
model = kernelize(Model(), mode=Mode.TRAINING | Mode.TORCH_COMPILE, device="cpu")
x = torch.randn(3, 4)
a, b = model.up(x).chunk(2, -1)
torch.testing.assert_close(model(x), nn.functional.silu(a) * b)
model(x).sum().backward()
assert model.up.weight.grad is not None
print("loaded and kernelized")
"""


def check(variant: Path, *options: str) -> None:
    command = [sys.executable, "-c", PROGRAM, str(variant.parent), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=ROOT)
    assert done.returncode == 0 and "loaded and kernelized" in done.stdout, done.stderr[-2000:]


def test_kernels_loads_it(tmp_path: Path) -> None:
    """Its functions, and a layer in the place of another one's forward."""
    check(written(tmp_path))


def test_a_library_of_its_own(tmp_path: Path) -> None:
    """Built as for the Hub: loaded beside the installed package; no symbol that its checker refuses."""
    checker = pytest.importorskip("kernel_abi_check")
    variant = hub_kernel.assemble(tmp_path)
    check(variant, "beside")
    (library,) = variant.glob("*.so")
    found = checker.ObjectFile(str(library))
    assert not list(found.check_python_abi("3.9"))
    assert not list(found.check_manylinux("manylinux_2_34"))
