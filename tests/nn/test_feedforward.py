"""Gated feed-forward networks and soft caps: by the functions where these know them, as torch has them elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from xlstm_cuda import functional
from xlstm_cuda import nn as xnn
from xlstm_cuda.models import xLSTMLargeConfig
from xlstm_cuda.models.large.layers import LargeFeedForward, LargeMLSTMLayer
from xlstm_cuda.nn.feedforward import ACTIVATIONS
from xlstm_cuda.nn.gates import soft_cap
from xlstm_cuda.testing import assert_close_relative

pytestmark = pytest.mark.usefixtures("fresh_seed")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Of the two functions: the activations, and the caps."""
    seen: list[Any] = []
    gated, capped = functional.gated_activation, functional.soft_cap

    def counted_gate(x: Tensor, gate: Tensor | None = None, *, activation: str) -> Tensor:
        seen.append(activation)
        return gated(x, gate, activation=activation)

    def counted_cap(x: Tensor, cap: float) -> Tensor:
        seen.append(cap)
        return capped(x, cap)

    monkeypatch.setattr(functional, "gated_activation", counted_gate)
    monkeypatch.setattr(functional, "soft_cap", counted_cap)
    return seen


def compare(module: nn.Module, expected: Callable[[Tensor], Tensor], x: Tensor) -> None:
    results = [(y, *torch.autograd.grad(y.sum(), [x, *module.parameters()])) for y in (module(x), expected(x))]
    for actual, wanted in zip(*results, strict=True):
        assert actual.dtype == wanted.dtype
        assert_close_relative(actual, wanted, 1e-5)


@pytest.mark.parametrize("act_fn", ACTIVATIONS)
def test_every_activation(act_fn: str, calls: list[Any]) -> None:
    module = xnn.GatedFeedForward(xnn.FeedForwardConfig(embedding_dim=8, act_fn=act_fn, bias=True))

    def expected(x: Tensor) -> Tensor:
        gate, up = module.proj_up(x).chunk(2, dim=-1)
        y: Tensor = module.proj_down(ACTIVATIONS[act_fn](gate) * up)
        return y

    compare(module, expected, torch.randn(2, 3, 8, requires_grad=True))
    assert calls == ({"swish": ["silu"], "selu": []}.get(act_fn, [act_fn]))


@pytest.mark.parametrize("mode", ["single", "fused"])
def test_large(mode: str, calls: list[Any]) -> None:
    config = xLSTMLargeConfig(embedding_dim=16, num_heads=2, num_blocks=1, vocab_size=8, weight_mode=mode)
    module, x = LargeFeedForward(config), torch.randn(2, 3, 16, requires_grad=True)

    def expected(x: Tensor) -> Tensor:
        if mode == "fused":
            gate, up = module.proj_up_gate_z(x).chunk(2, dim=-1)
        else:
            gate, up = module.proj_up_gate(x), module.proj_up(x)
        y: Tensor = module.proj_down(F.silu(gate) * up)
        return y

    compare(module, expected, x)
    LargeMLSTMLayer(config)(x)
    assert calls == ["silu", 15.0]  # both gates at once


def test_what_the_functions_do_not_know(calls: list[Any]) -> None:
    class Odd(Tensor):
        pass

    x = torch.randn(2, 3)
    odd = x.as_subclass(Odd)
    assert isinstance(soft_cap(odd, 2.0), Odd)
    assert soft_cap(x, None) is x
    module = xnn.GatedFeedForward(xnn.FeedForwardConfig(embedding_dim=8))
    module.act_fn = torch.tanh
    module(torch.randn(2, 3, 8))
    assert calls == []
    traced = fx.symbolic_trace(xnn.GatedFeedForward(xnn.FeedForwardConfig(embedding_dim=8)))
    assert F.gelu in {node.target for node in traced.graph.nodes}
    module.act_fn = F.gelu
    with torch.autocast("cpu", torch.bfloat16):
        assert module(torch.randn(2, 3, 8)).dtype == torch.bfloat16
    assert calls == ["gelu"]
