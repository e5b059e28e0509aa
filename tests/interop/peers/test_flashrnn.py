"""The package flashrnn with its plain backend, and with ours in its place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from xlstm_cuda.interop import flashrnn as ours
from xlstm_cuda.testing import assert_close_relative

package = pytest.importorskip("flashrnn")
theirs = package.flashrnn  # taken by name before anything is patched
B, T, H, D = 2, 6, 3, 4


@pytest.fixture(autouse=True)
def disabled() -> Iterator[None]:
    yield
    ours.disable()


def draw(function: str) -> dict[str, Tensor]:
    states = torch.randn(2 if function == "lstm" else 4, B, 1, H, D)
    if function == "slstm":
        states[2] = states[2].abs() + 1
    found = {"Wx": torch.randn(B, T, 4, H, D), "R": torch.randn(4, H, D, D) / 2, "b": torch.randn(4, H, D)}
    return {name: x.requires_grad_() for name, x in (found | {"states": states}).items()}


def results(call: Any, inputs: dict[str, Tensor], **options: Any) -> list[Tensor]:
    """All states, the last ones, and gradients through both."""
    found = call(**inputs, **options)
    generator = torch.Generator().manual_seed(0)
    loss = sum((x * torch.randn(x.shape, generator=generator)).sum() for x in found)
    return [*found, *torch.autograd.grad(loss, list(inputs.values()))]


def same(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert_close_relative(a, e, 1e-5)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("function", ["lstm", "slstm"])
def test_same_results(function: str, given: bool) -> None:
    inputs = draw(function)
    if not given:
        del inputs["states"]
    options = {"function": function, "backend": "vanilla", "dtype": "float32"}
    expected = results(theirs, inputs, **options)
    same(results(ours.flashrnn, inputs, **options), expected)
    ours.enable()
    enabled = results(theirs, inputs, **options)
    same(enabled, expected)
    assert not torch.equal(enabled[2], expected[2]), "the same kernel ran twice"


def test_enabled_for_h_alone() -> None:
    inputs = draw("lstm")
    expected = theirs(**inputs, backend="vanilla", dtype="float32")
    ours.enable()
    ours.enable(all_states=False)
    h, last = theirs(**inputs, backend="vanilla", dtype="float32")
    assert h.shape == (1, B, T, H, D)
    same([h, last], [expected[0][:1], expected[1]])


@pytest.mark.parametrize("backend", ["vanilla", "cuda", "cuda_fused", "triton_fused"])
def test_enabled_for_each_backend(backend: str) -> None:
    """Each has an internal order of dimensions of its own; the last three need a GPU in the package."""
    inputs = draw("slstm")
    expected = results(theirs, inputs, function="slstm", backend="vanilla", dtype="float32")
    ours.enable()
    same(results(theirs, inputs, function="slstm", backend=backend, dtype="float32"), expected)


def test_config_of_the_package() -> None:
    options = {"recurrent_shape": "HPGD", "bias_shape": "HGD", "function": "slstm", "dtype": "float32"}
    inputs = draw("slstm")
    inputs["R"] = inputs["R"].detach().permute(1, 3, 0, 2).requires_grad_()
    inputs["b"] = inputs["b"].detach().permute(1, 0, 2).requires_grad_()
    config = package.FlashRNNConfig(head_dim=D, num_heads=H, backend="vanilla", **options)
    expected = results(theirs, inputs, config=config)
    same(results(ours.flashrnn, inputs, config=config), expected)
    same(results(ours.flashrnn, inputs, config=ours.FlashRNNConfig(**options)), expected)


def test_other_functions_of_the_package() -> None:
    """They have no kernels here: one sentence while enabled, the package's own results before and after."""
    inputs = {"Wx": torch.randn(B, T, 1, H, D), "R": torch.randn(1, H, D, D), "b": torch.randn(1, H, D)}
    options = {"function": "elman", "backend": "vanilla", "dtype": "float32"}
    expected = theirs(**inputs, **options)
    ours.enable()
    ours.enable()
    with pytest.raises(ValueError, match="^flashrnn: function must be 'lstm' or 'slstm', got 'elman'"):
        theirs(**inputs, **options)
    ours.disable()
    assert torch.equal(theirs(**inputs, **options)[0], expected[0])


def test_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    monkeypatch.delattr(importlib.import_module("flashrnn.flashrnn.flashrnn"), "_get_kernel")
    with pytest.raises(ImportError, match="needs flashrnn 1.0.8"):
        ours.enable()
