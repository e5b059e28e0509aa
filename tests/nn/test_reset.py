"""Documents packed in one row with `reset`, and steps of several tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tests.support.rounding import assert_near_float64
from xlstm_cuda import nn as xnn
from xlstm_cuda.models import xLSTMLMModel, xLSTMLMModelConfig
from xlstm_cuda.nn.conv import CausalConv1d
from xlstm_cuda.testing import assert_close_relative

DIM, VOCAB = 32, 11
TOLERANCE = 1e-10  # in float64: 4e5 units in the last place, for seeds where a normaliser nearly vanishes


def mlstm_config(**fields: Any) -> xnn.mLSTMLayerConfig:
    return xnn.mLSTMLayerConfig(embedding_dim=DIM, num_heads=2, **fields)


def slstm_config(**fields: Any) -> xnn.sLSTMLayerConfig:
    return xnn.sLSTMLayerConfig(embedding_dim=DIM, num_heads=2, **fields)


def lm_config() -> xLSTMLMModelConfig:
    return xLSTMLMModelConfig.from_ratio("1:1", 2, embedding_dim=DIM, vocab_size=VOCAB)


MODULES: dict[str, Callable[[], Any]] = {
    "mLSTM layer": lambda: xnn.mLSTMLayer(mlstm_config()),
    "mLSTM layer, kernel 1": lambda: xnn.mLSTMLayer(mlstm_config(conv1d_kernel_size=1)),
    "sLSTM layer": lambda: xnn.sLSTMLayer(slstm_config()),
    "sLSTM layer, no conv": lambda: xnn.sLSTMLayer(slstm_config(conv1d_kernel_size=0)),
    "mLSTM block": lambda: xnn.mLSTMBlock(xnn.mLSTMBlockConfig(mlstm=mlstm_config())),
    "sLSTM block": lambda: xnn.sLSTMBlock(xnn.sLSTMBlockConfig(slstm=slstm_config())),
    "stack": lambda: xnn.xLSTMBlockStack(xnn.xLSTMBlockStackConfig.from_ratio("1:1", 2, embedding_dim=DIM)),
    "model": lambda: xLSTMLMModel(lm_config()),
}
every_module = pytest.mark.parametrize("name", MODULES)
TERMS = 192  # of the longest sum in them: the gates read q, k and v


pytestmark = pytest.mark.usefixtures("fresh_seed")


def build(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """A module with every parameter moved away from its initial value: zeros hide mistakes."""
    module = MODULES[name]()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return module.to(dtype)


def draw(name: str, batch: int, seqlen: int, dtype: torch.dtype = torch.float64) -> Tensor:
    if name == "model":
        return torch.randint(VOCAB, (batch, seqlen))
    return torch.randn(batch, seqlen, DIM, dtype=dtype)


def one_by_one(module: Any, x: Tensor, reset: Tensor, state: Any) -> tuple[Tensor, Any]:
    """Every document of every row in a call of its own; the outputs and the rows' last states."""
    rows, states = [], []
    for b in range(x.shape[0]):
        starts = sorted({0, *reset[b].nonzero().flatten().tolist()})
        carried = None if state is None else pytree.tree_map(lambda leaf, row=b: leaf[row : row + 1], state)
        parts = []
        for start, end in zip(starts, [*starts[1:], x.shape[1]], strict=True):
            before = None if reset[b, start] else carried
            y, carried = module(x[b : b + 1, start:end], before, return_state=True)
            parts.append(y)
        rows.append(torch.cat(parts, 1))
        states.append(carried)
    return torch.cat(rows), pytree.tree_map(lambda *leaves: torch.cat(leaves), *states)


def close(actual: Any, expected: Any) -> None:
    for a, b in zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True):
        assert a.shape == b.shape
        if b.numel():
            assert_close_relative(a, b, TOLERANCE)


def in_float64(value: Any) -> Any:
    if isinstance(value, torch.nn.Module):
        return copy.deepcopy(value).double()

    def of_leaf(leaf: Any) -> Any:
        return leaf.detach().double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return pytree.tree_map(of_leaf, value)


def by_name(tree: Any) -> dict[str, Tensor]:
    return {str(key): leaf for key, leaf in enumerate(pytree.tree_leaves(tree))}


def gradients(module: Any, results: Any, weights: list[Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [leaf for leaf in pytree.tree_leaves(results) if leaf.numel() and leaf.requires_grad]
    loss = sum((w * leaf).sum() for w, leaf in zip(weights, leaves, strict=True))
    return [g for g in torch.autograd.grad(loss, [*module.parameters(), *inputs], allow_unused=True) if g is not None]


@every_module
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_packed_documents_equal_separate_calls(name: str, carried: bool, dtype: torch.dtype) -> None:
    """Outputs, last states and, in float64, gradients; documents shorter than the convolution's window among them."""
    module, x = build(name, dtype), draw(name, 3, 21, dtype)
    reset = torch.rand(3, 21) < 0.3
    reset[0, :2], reset[1, 0], reset[2, -1] = True, False, True
    state = None
    if carried:
        with torch.no_grad():
            state = module(draw(name, 3, 5, dtype), return_state=True)[1]
    inputs = [leaf for leaf in (x, *pytree.tree_leaves(state)) if leaf is not None and leaf.is_floating_point()]
    for leaf in inputs:
        leaf.requires_grad_()
    actual = module(x, state, return_state=True, reset=reset)
    if dtype == torch.float32:  # where a normaliser nearly vanishes, a module amplifies rounding
        given = in_float64(x), reset, in_float64(state)
        assert_near_float64(by_name(actual), module, lambda wide: by_name(one_by_one(wide, *given)), dtype, TERMS)
        return
    expected = one_by_one(module, x, reset, state)
    close(actual, expected)
    close(module(x, state, reset=reset), expected[0])
    leaves = [leaf for leaf in pytree.tree_leaves(expected) if leaf.numel() and leaf.requires_grad]
    weights = [torch.randn_like(leaf) for leaf in leaves]
    ours, theirs = (gradients(module, results, weights, *inputs) for results in (actual, expected))
    assert len(ours) == len(theirs)
    scale = max(float(g.abs().max()) for g in theirs if g.numel())  # of all: single ones cancel to nearly nothing
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=TOLERANCE * scale)


def test_without_a_reset_it_is_the_plain_call() -> None:
    model, ids = build("model"), draw("model", 2, 9)
    nowhere = torch.zeros(2, 9, dtype=torch.bool)
    close(model(ids, return_state=True, reset=nowhere), model(ids, return_state=True))


@pytest.mark.parametrize("name", [name for name in MODULES if name != "model"])
def test_a_reset_in_a_step_is_not_ignored(name: str) -> None:
    module, x = build(name), draw(name, 2, 9)
    reset = torch.rand(2, 9) < 0.4
    reset[0, 3] = True
    close(module(x, None, True, reset=reset, is_step=True), module(x, None, True, reset=reset))


@pytest.mark.parametrize("kernel_size", [1, 2, 4])
def test_convolution_does_not_look_back(kernel_size: int) -> None:
    """Not even at NaN, in the input and in the carried window; and the window that it leaves is clean too."""
    conv, x = CausalConv1d(3, kernel_size).double(), torch.randn(2, 7, 3, dtype=torch.float64)
    reset = torch.zeros(2, 7, dtype=torch.bool)
    reset[:, 5] = True
    dirty = x.clone()
    dirty[:, :5] = torch.nan
    y, window = conv(dirty, torch.full((2, kernel_size - 1, 3), torch.nan), reset=reset)
    clean, clean_window = conv(x[:, 5:])
    assert torch.equal(y[:, 5:], clean) and torch.equal(window, clean_window)
    empty = torch.zeros(2, 0, dtype=torch.bool)
    assert torch.equal(conv(x[:, :0], window, reset=empty)[1], window), "no token, no reset"


@every_module
def test_reset_errors(name: str) -> None:
    module, x = build(name), draw(name, 2, 4)
    with pytest.raises(ValueError, match=r"reset must have shape \(2, 4\), got \(2, 3\)"):
        module(x, reset=torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(TypeError, match="reset must be torch.bool, got torch.int64"):
        module(x, reset=torch.zeros(2, 4, dtype=torch.int64))


def test_prefill_with_reset() -> None:
    model, ids = build("model"), draw("model", 2, 9)
    reset = torch.rand(2, 9) < 0.4
    logits, state = model.prefill(ids, reset=reset)
    expected = model(ids, reset=reset, return_state=True)
    close((logits, state), (expected[0][:, -1:], expected[1]))


@every_module
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_steps_of_several_tokens(name: str, dtype: torch.dtype) -> None:
    module, x = build(name, dtype), draw(name, 2, 1 + 16 + 3, dtype)
    state, parts = None, []
    for part in x.split([1, 16, 3], 1):
        y, state = module.step(part, state)
        parts.append(y)
    actual, wide_x = (torch.cat(parts, 1), state), in_float64(x)
    if dtype == torch.float32:
        assert_near_float64(
            by_name(actual), module, lambda wide: by_name(wide(wide_x, return_state=True)), dtype, TERMS
        )
    else:
        close(actual, module(x, return_state=True))
        with torch.no_grad():  # the step's own kernels
            y, _ = module.step(x[:, :16])
        close(y, module(x[:, :16]))


def test_speculative_decoding() -> None:
    """A draft's tokens are checked in one step; from the kept state the accepted ones are stepped again."""
    model = build("model").eval()
    prompt, draft = draw("model", 2, 6), draw("model", 2, 5)
    with torch.no_grad():
        state = model.prefill(prompt)[1]
        kept = pytree.tree_map(torch.clone, state)
        checked, _ = model.step(draft, state)
        assert all(torch.equal(a, b) for a, b in zip(*map(pytree.tree_leaves, (state, kept)), strict=True))
        for accepted in range(1, 6):
            logits, after = model.step(draft[:, :accepted], state)
            whole = model(torch.cat([prompt, draft[:, :accepted]], 1), return_state=True)
            close(after, whole[1])
            close(logits, whole[0][:, 6:])
            close(checked[:, :accepted], logits)
