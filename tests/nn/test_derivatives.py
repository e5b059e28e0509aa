"""Modules that compute a child's map themselves, or a block in one op: numerical derivatives in every mode."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.utils import _pytree as pytree

from xlstm_cuda import nn as xnn
from xlstm_cuda.functional import MLSTMState
from xlstm_cuda.models import xLSTMLargeConfig
from xlstm_cuda.models.large.layers import LargeBlock
from xlstm_cuda.nn.linear import DecodingLinear

pytestmark = pytest.mark.usefixtures("fresh_seed")


class Step(LargeBlock):
    """A decode step: without gradients it is one op."""

    def forward(self, x: Tensor, *state: Tensor) -> Any:  # type: ignore[override]
        return super().forward(x, MLSTMState(*state), None, True)


def large(**fields: Any) -> xLSTMLargeConfig:
    sizes: dict[str, Any] = {"embedding_dim": 4, "num_heads": 2, "num_blocks": 1, "vocab_size": 5}
    return xLSTMLargeConfig(**sizes, ffn_round_up_to_multiple_of=4, gate_soft_cap=3.0, **fields)


def mlstm_block() -> nn.Module:
    layer: Any = {"embedding_dim": 4, "num_heads": 2, "conv1d_kernel_size": 2, "qkv_proj_blocksize": 2}
    layer |= {"proj_factor": 0.5, "round_proj_up_to_multiple_of": 4}
    return xnn.mLSTMBlock(xnn.mLSTMBlockConfig(xnn.mLSTMLayerConfig(**layer)))


def slstm_block() -> nn.Module:
    layer = xnn.sLSTMLayerConfig(embedding_dim=4, num_heads=2, conv1d_kernel_size=2)
    return xnn.sLSTMBlock(xnn.sLSTMBlockConfig(layer, xnn.FeedForwardConfig(round_proj_up_to_multiple_of=4)))


STATE = ((1, 2, 1, 2), (1, 2, 1), (1, 2))
MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "linear": (lambda: DecodingLinear(3, 2), ((2, 3),)),
    "mLSTM block": (mlstm_block, ((1, 2, 4),)),
    "sLSTM block": (slstm_block, ((1, 2, 4),)),
    "large block": (lambda: LargeBlock(large(weight_mode="fused", use_bias=True)), ((1, 2, 4),)),
    "step of a large block": (lambda: Step(large()), ((1, 1, 4), *STATE)),
}


@pytest.mark.parametrize("name", MODULES)
def test_derivatives(name: str) -> None:
    """Of one vector of all outputs, by one of all inputs and parameters: a check calls the module for each tensor."""
    make, inputs = MODULES[name]
    module = make().double()
    names, parameters = zip(*module.named_parameters(), strict=True)
    shapes = [*inputs, *(p.shape for p in parameters)]
    # parameters away from their initial values, of which many are zero
    drawn = [*(torch.zeros(shape) for shape in inputs), *(p.detach() for p in parameters)]
    vector = torch.cat([x.flatten() + 0.3 * torch.randn(x.numel(), dtype=torch.float64) for x in drawn])

    def call(vector: Tensor) -> Tensor:
        parts = vector.split([math.prod(shape) for shape in shapes])
        given = [x.view(shape) for x, shape in zip(parts, shapes, strict=True)]
        of_module = dict(zip(names, given[len(inputs) :], strict=True))
        outputs = pytree.tree_leaves(functional_call(module, of_module, tuple(given[: len(inputs)])))
        return torch.cat([y.flatten() for y in outputs])

    modes = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(call, vector.requires_grad_(), fast_mode=True, **modes)
    assert gradgradcheck(call, vector, fast_mode=True, check_batched_grad=True)
