"""A decode step of xLSTMLarge as one op for each block: what it gives, and when the parts are called instead."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import xlstm_cuda
from tests.support.block_steps import counted
from xlstm_cuda import MLSTMState
from xlstm_cuda.models import xLSTMLarge, xLSTMLargeConfig
from xlstm_cuda.models.large import layers
from xlstm_cuda.testing import assert_close_relative

pytestmark = pytest.mark.usefixtures("fresh_seed")
SIZES: dict[str, Any] = {"embedding_dim": 40, "num_heads": 2, "num_blocks": 2, "vocab_size": 11}


def make(**options: Any) -> xLSTMLarge:
    model = xLSTMLarge(xLSTMLargeConfig(**SIZES | options)).eval().requires_grad_(False)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model


def some_state(batch: int) -> MLSTMState:
    C = torch.randn(batch, 2, 10, 20)
    return MLSTMState(C, torch.randn(batch, 2, 10), torch.randn(batch, 2))


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    return counted(monkeypatch, layers)


@pytest.mark.parametrize(("batch", "seqlen"), [(1, 1), (8, 1), (3, 2), (1, 7), (0, 1)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_mode": "fused"},
        {"gate_soft_cap": None, "norm_eps": 1e-2, "eps": 1e-2},
        {"chunkwise_kernel": "chunkwise--triton_xl_chunk_siging", "weight_mode": "fused"},
    ],
    ids=str,
)
def test_against_the_parts_in_float64(
    options: dict[str, Any], batch: int, seqlen: int, fused_calls: list[bool]
) -> None:
    model = make(**options)
    states = tuple(some_state(batch) for _ in range(2))
    before = [[part.clone() for part in state] for state in states]
    ids = torch.randint(0, 11, (batch, seqlen))
    logits, after = model.step(ids, states)
    assert fused_calls == [batch > 0] * 2
    assert all(torch.equal(a, b) for s, t in zip(states, before, strict=True) for a, b in zip(s, t, strict=True))
    wide = [MLSTMState(*(part.double() for part in state)) for state in states]
    with xlstm_cuda.backend("reference"):
        expected, expected_after = model.double().step(ids, tuple(wide))
    assert_close_relative(logits, expected, 1e-4)
    for state, other in zip(after, expected_after, strict=True):
        for part, exact in zip(state, other, strict=True):
            assert part.dtype == torch.float32
            assert_close_relative(part, exact, 1e-4)


def test_states_in_other_strides() -> None:
    model, x = make().backbone.blocks[0], torch.randn(2, 1, 40)
    state = some_state(2)
    strided = MLSTMState(state.C.mT.contiguous().mT, state.n.mT.contiguous().mT, state.m.t().contiguous().t())
    y, after = model(x.expand(2, 1, 40), state, is_step=True)
    z, other = model(x.transpose(1, 2).contiguous().transpose(1, 2), strided, is_step=True)
    assert torch.equal(y, z) and all(torch.equal(a, b) for a, b in zip(after, other, strict=True))


def test_rows_of_a_batch_are_apart() -> None:
    block, x, state = make().backbone.blocks[0], torch.randn(3, 1, 40), some_state(3)
    expected, _ = block(x, state, is_step=True)
    x[1, 0, 0] = math.nan
    y, after = block(x, state, is_step=True)
    assert torch.equal(y[::2], expected[::2]) and y[1].isnan().all()
    assert all(part[::2].isfinite().all() for part in after)


class Adapter(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def adapted(model: xLSTMLarge) -> None:
    for block in model.backbone.blocks:
        child = block.ffn.proj_up
        block.ffn.proj_up = Adapter(child.in_features, child.out_features, bias=False).requires_grad_(False)


def hooked(model: xLSTMLarge) -> None:
    for block in model.backbone.blocks:
        block.mlstm_layer.register_forward_hook(lambda *_: None)


def biased_norm(model: xLSTMLarge) -> None:
    for block in model.backbone.blocks:
        block.norm_ffn.bias = nn.Parameter(torch.randn(40), requires_grad=False)


@pytest.mark.parametrize(
    ("change", "rows", "taken"),
    [
        (lambda model: None, 8, True),
        (lambda model: None, 9, False),
        (adapted, 1, False),
        (hooked, 1, False),
        (biased_norm, 1, False),
        (lambda model: model.requires_grad_(True), 1, False),
        (lambda model: model.double(), 1, False),
        (lambda model: model.bfloat16(), 1, False),
    ],
    ids=["8 rows", "9 rows", "adapter", "hook", "bias", "gradients", "float64", "bfloat16"],
)
def test_when_the_parts_are_called(
    change: Callable[[xLSTMLarge], Any], rows: int, taken: bool, fused_calls: list[bool]
) -> None:
    model = make()
    change(model)
    ids = torch.randint(0, 11, (rows, 1))
    _, state = model.prefill(ids)
    stepped, _ = model.step(ids, state)
    assert fused_calls == [taken] * 2
    called, _ = model(ids, state, return_state=True)
    assert_close_relative(stepped, called, 0.1 if stepped.dtype == torch.bfloat16 else 1e-4)
