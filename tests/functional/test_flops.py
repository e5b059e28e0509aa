"""Flops of the ops against the products that torch counts in the plain recurrences, forward and backward."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from xlstm_cuda import lstm, lstm_step, mlstm, mlstm_step, slstm, slstm_step
from xlstm_cuda import nn as xnn
from xlstm_cuda.functional import backend as use_backend
from xlstm_cuda.testing import lstm_inputs, mlstm_inputs, slstm_inputs


def counted(call: Callable[[], Any]) -> tuple[int, int]:
    """Flops of a call that returns (h, state), and of the backward through both."""
    with FlopCounterMode(display=False) as counter:
        h, state = call()
        forward = counter.get_total_flops()
        sum(part.sum() for part in (h, *state)).backward()
    return forward, counter.get_total_flops() - forward


def plain_mlstm(q: Tensor, k: Tensor, v: Tensor, normalize: bool, state: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The products of the mLSTM, token by token; gates only scale."""
    C, n, m = state
    outputs = []
    for t in range(q.shape[2]):
        q_t, k_t, v_t = q[:, :, t, None], k[:, :, t, :, None], v[:, :, t, None]  # a row, a column, a row
        C, n = 0.5 * C + k_t @ v_t, 0.5 * n + k_t.squeeze(-1)
        h = q_t @ C
        outputs.append(h / (q_t @ n[..., None]) if normalize else h)
    return torch.cat(outputs, 2), (C, n, m) if normalize else (C, m)


def plain_recurrent(x: Tensor, R: Tensor, state: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The products of sLSTM and LSTM, token by token."""
    h, *rest = state
    for t in range(x.shape[1]):
        gates = x[:, t] + torch.einsum("ghij,bhj->bghi", R, h)
        h = gates.tanh().prod(1)
    return h, tuple(rest)


@pytest.mark.parametrize("sizes", [(2, 3, 7, 5, 6), (1, 1, 130, 8, 16)], ids=str)
@pytest.mark.parametrize("options", [{}, {"chunk_size": 3}, {"input_gate": "sigmoid", "normalize": False}], ids=str)
def test_mlstm(sizes: tuple[int, ...], options: dict[str, Any]) -> None:
    inputs = mlstm_inputs(*sizes, state=True, requires_grad=True)
    tokens = [inputs[name] for name in "qkv"]
    normalize = options.get("normalize", True)
    expected = counted(lambda: plain_mlstm(*tokens, normalize, inputs["initial_state"]))
    assert counted(lambda: mlstm(**inputs, return_state=True, **options)) == expected and expected[0] > 0
    if normalize:
        without = counted(lambda: plain_mlstm(*tokens, False, inputs["initial_state"]))
        found = counted(lambda: mlstm(**inputs, return_state=True, norm_grad=False, **options))
        assert found == (expected[0], without[1])


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("seqlen", [None, 1, 4])
def test_mlstm_step(seqlen: int | None, inplace: bool) -> None:
    inputs = mlstm_inputs(2, 3, seqlen or 1, 5, 6, state=True, dtype=torch.float32)
    *tokens, state = inputs.values()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain_mlstm(*tokens[:3], True, state)
        expected = counter.get_total_flops()
        mlstm_step(*(x.squeeze(2) if seqlen is None else x for x in tokens), state, inplace=inplace)
    assert counter.get_total_flops() == 2 * expected > 0


@pytest.mark.parametrize(
    ("function", "step", "make"), [(slstm, slstm_step, slstm_inputs), (lstm, lstm_step, lstm_inputs)]
)
@pytest.mark.parametrize("sizes", [(2, 7, 3, 5), (3, 40, 1, 16)], ids=str)
def test_recurrent(function: Any, step: Any, make: Any, sizes: tuple[int, ...]) -> None:
    inputs = make(*sizes, state=True, requires_grad=True)
    x, R, state = inputs["x"], inputs["R"], inputs["initial_state"]
    expected = counted(lambda: plain_recurrent(x, R, state))
    assert counted(lambda: function(**inputs, return_state=True)) == expected and expected[0] > 0
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        step(x[:, 0], R, inputs["b"], state)
    assert counter.get_total_flops() * sizes[1] == expected[0]


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_lstm_is_what_torch_counts(options: dict[str, Any]) -> None:
    """In float64, where torch's LSTM is made of products that it counts; with gradients of all that has any."""
    directions = 1 + options.get("bidirectional", False)
    x, *hx = torch.randn(10, 2, 24), *torch.randn(2, options.get("num_layers", 1) * directions, 2, 16)
    x, *hx = (part.double().requires_grad_() for part in (x, *hx))
    ours, theirs = (counted(partial(cls(24, 16, dtype=torch.float64, **options), x, hx)) for cls in (xnn.LSTM, nn.LSTM))
    assert ours == theirs and ours[0] > 0


def test_the_reference_counts_nothing_twice() -> None:
    """Its own products are counted, and no op of the library is called."""
    inputs = slstm_inputs(2, 7, 3, 5)
    with FlopCounterMode(display=False) as counter, use_backend("reference"):
        slstm(**inputs)
    assert not any("xlstm_cuda" in str(op) for op in counter.get_flop_counts()["Global"])


PROGRAM = """
import sys, torch
{first}
{second}
from xlstm_cuda import lstm
counter = sys.modules["torch.utils.flop_counter"].FlopCounterMode(display=False)
with counter:
    lstm(torch.randn(2, 3, 4, 1, 5), torch.randn(4, 1, 5, 5))
assert counter.get_total_flops() == 2 * 2 * 3 * 4 * 5 * 5
"""
OURS = "import xlstm_cuda; assert 'torch.utils.flop_counter' not in sys.modules or {late}"
COUNTER = "import torch.utils.flop_counter"


@pytest.mark.parametrize("late", [True, False])
def test_counted_whichever_is_imported_first(late: bool) -> None:
    """torch's counter brings triton along: it is not imported for those who do not count."""
    lines = [OURS.format(late=late), COUNTER]
    program = PROGRAM.format(first=lines[late], second=lines[not late])
    subprocess.run([sys.executable, "-c", program], check=True)
