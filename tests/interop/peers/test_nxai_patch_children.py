"""Patched models of the public `xlstm` package call their children: hooks, adapters, quantised, offloaded weights."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.nxai_models import CONFIGS, build, ids, randomise
from tests.support.tiny_models import Int8Linear
from xlstm_cuda import patch
from xlstm_cuda.testing import assert_close_relative

xlstm = pytest.importorskip("xlstm")
pytest.importorskip("mlstm_kernels")
from xlstm.xlstm_large.model import xLSTMLarge, xLSTMLargeConfig  # noqa: E402

KERNELS = {
    "chunkwise_kernel": "chunkwise--native_autograd",
    "sequence_kernel": "native_sequence__native",
    "step_kernel": "native",
}
MODELS = ("mixed", "bias", "single", "fused")
every_model = pytest.mark.parametrize("name", MODELS)


def model(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """Theirs, not patched; "single" and "fused" are xLSTMLarge."""
    torch.manual_seed(0)
    if name in CONFIGS:
        built: Any = xlstm.xLSTMLMModel(build(xlstm, xlstm, **CONFIGS[name]))
        built.reset_parameters()
    else:
        sizes = {"embedding_dim": 32, "num_heads": 2, "num_blocks": 2, "vocab_size": 29, "chunk_size": 7}
        built = xLSTMLarge(xLSTMLargeConfig(**sizes, **KERNELS, weight_mode=name, return_last_states=True))
    randomise(built)
    return built.to(dtype).eval().requires_grad_(False)


def run_all(built: Any) -> Tensor:
    if isinstance(built, xLSTMLarge):
        return built(ids())[0]
    return built(ids())


def run_states(built: Any) -> Tensor:
    options = {} if isinstance(built, xLSTMLarge) else {"return_last_state": True}
    first, state = built(ids()[:, :14], **options)
    return torch.cat([first, built(ids()[:, 14:], state, **options)[0]], 1)


def run_steps(built: Any) -> Tensor:
    step = built if isinstance(built, xLSTMLarge) else built.step
    state, logits = None, []
    for token in ids().split(1, 1):
        y, state = step(token, state)
        logits.append(y)
    return torch.cat(logits, 1)


every_run = pytest.mark.parametrize("run", [run_all, run_states, run_steps])


def leaves(built: nn.Module) -> dict[str, nn.Module]:
    """What holds weights, but for mLSTM layers, which theirs do not call in a step either."""
    found = {name: m for name, m in built.named_modules() if any(True for _ in m.parameters(recurse=False))}
    return {name: m for name, m in found.items() if type(m).__name__ != "PatchedMLSTMLayer"}


@every_run
@every_model
def test_every_leaf_is_called(name: str, run: Callable[[Any], Tensor]) -> None:
    built, seen = model(name), set()
    patch(built)
    expected = run(built)
    for path, module in leaves(built).items():
        module.register_forward_hook(lambda *_, path=path: seen.add(path))
    assert_close_relative(run(built), expected, 1e-12)
    assert seen == set(leaves(built))


class Packed(nn.Module):
    """`weight` is a method, as of the maps that torch.ao.quantization makes."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def weight(self) -> Tensor:
        return self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y


def replaced(built: nn.Module, kind: Callable[[nn.Linear], nn.Module]) -> Any:
    """A copy with another module in the place of every torch.nn.Linear."""
    built = copy.deepcopy(built)
    for path, module in list(built.named_modules()):
        if type(module) is nn.Linear:
            parent, _, name = path.rpartition(".")
            setattr(built.get_submodule(parent), name, kind(module))
    return built


@every_run
@every_model
@pytest.mark.parametrize("kind", [Int8Linear, Packed])
def test_quantised(name: str, run: Callable[[Any], Tensor], kind: Any) -> None:
    """Linear maps whose weight is of whole numbers, or no tensor, give what they give in the model they come from."""
    built = replaced(model(name), kind)
    theirs = run_all(built)
    patch(built)
    assert_close_relative(run(built), theirs, 1e-5)  # their eps in the normaliser counts for more, see test_gradients


@every_run
@every_model
def test_offloaded(name: str, run: Callable[[Any], Tensor]) -> None:
    if name in CONFIGS and run is run_steps:
        pytest.skip("xlstm reads the skip connection's weights in a step without calling their layer")
    accelerate = pytest.importorskip("accelerate")
    built = model(name)
    patch(built)
    expected = run(built)
    offloaded = accelerate.cpu_offload(built, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in offloaded.parameters())
    assert_close_relative(run(offloaded), expected, 1e-12)


@every_run
@every_model
def test_peft(name: str, run: Callable[[Any], Tensor]) -> None:
    peft = pytest.importorskip("peft")
    built = model(name)
    patch(built)
    before = run(built)
    linear = [path for path, module in built.named_modules() if type(module) is nn.Linear]
    adapted = peft.get_peft_model(built, peft.LoraConfig(target_modules=linear, r=2, init_lora_weights=False))
    expected = run(adapted.base_model.model)
    assert (expected - before).abs().max() > 0
    assert_close_relative(run(adapted.merge_and_unload()), expected, 1e-11)


def test_a_convolution_with_an_adapter_steps_as_it_runs() -> None:
    built = model("mixed")
    patch(built)
    before = run_all(built)
    for module in list(built.modules()):
        if isinstance(getattr(module, "conv", None), nn.Conv1d):
            conv = module.conv
            conv.forward = functools.partial(lambda forward, x: 2 * forward(x), conv.forward)
    expected = run_all(built)
    assert (expected - before).abs().max() > 0.01
    assert_close_relative(run_steps(built), expected, 1e-11)
