"""Sizes whose products overflow: an empty tensor may have them, and an expanded one, at the cost of no memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from xlstm_cuda import (
    LSTMState,
    MLSTMState,
    SLSTMState,
    _ops,
    causal_conv1d,
    causal_conv1d_step,
    gated_activation,
    headwise_linear,
    lstm,
    lstm_step,
    mlstm,
    mlstm_step,
    multihead_norm_gate,
    slstm,
    slstm_step,
    soft_cap,
)

MESSAGE = "have fewer than 2\\*\\*48 elements, an empty dimension counted as 1, got shape"


def wide(*shape: int) -> torch.Tensor:
    """Of one element of memory, or none."""
    return torch.zeros([min(size, 1) for size in shape]).expand(shape)


def cell_inputs(B: int, S: int, H: int, D: int, step: bool) -> dict[str, Any]:
    tokens = (B,) if step else (B, S)
    return {"x": wide(*tokens, 4, H, D), "R": wide(4, H, D, D), "b": None}


def state_of(cls: Any, B: int, H: int, D: int) -> Any:
    return cls(*(wide(B, H, D) for _ in cls._fields))


CALLS: dict[str, Callable[[], Any]] = {}
for B, S, H, D in ((0, 3, 2**20, 2**20), (0, 1, 1, 2**30), (1, 0, 2**20, 2**20), (0, 2**40, 2**10, 1)):
    size = f"B={B} S={S} H={H} D={D}"
    CALLS[f"slstm {size}"] = lambda s=(B, S, H, D): slstm(**cell_inputs(*s, step=False))  # type: ignore[misc]
    CALLS[f"lstm {size}"] = lambda s=(B, S, H, D): lstm(**cell_inputs(*s, step=False))  # type: ignore[misc]
    if S == 3:
        CALLS[f"slstm_step {size}"] = (
            lambda s=(B, S, H, D): slstm_step(  # type: ignore[misc]
                **cell_inputs(*s, step=True), state=state_of(SLSTMState, s[0], *s[2:])
            )
        )
        CALLS[f"lstm_step {size}"] = (
            lambda s=(B, S, H, D): lstm_step(  # type: ignore[misc]
                **cell_inputs(*s, step=True), state=state_of(LSTMState, s[0], *s[2:])
            )
        )
for B, H, S, Dqk, Dv in ((0, 1, 3, 2**40, 2**20), (0, 2**30, 2**10, 2**10, 1), (1, 1, 0, 2**24, 2**24)):
    q, v, i = wide(B, H, S, Dqk), wide(B, H, S, Dv), wide(B, H, S)
    CALLS[f"mlstm B={B} H={H} S={S} Dqk={Dqk} Dv={Dv}"] = lambda a=(q, q, v, i, i): mlstm(*a)  # type: ignore[misc]
CALLS["causal_conv1d"] = lambda: causal_conv1d(wide(0, 2**29, 2**20), wide(2**20, 1))
CALLS["causal_conv1d K"] = lambda: causal_conv1d(wide(0, 1, 2**29), wide(2**29, 2**20))
CALLS["causal_conv1d_step"] = lambda: causal_conv1d_step(wide(0, 2**29), wide(2**29, 2**20), None, None)
CALLS["multihead_norm_gate"] = lambda: multihead_norm_gate(wide(0, 3, 2**29, 2**20))
CALLS["multihead_norm_gate D"] = lambda: multihead_norm_gate(wide(1, 0, 1, 2**50))
CALLS["headwise_linear"] = lambda: headwise_linear(wide(0, 2**29, 2**20), wide(2**18, 4, 4))
CALLS["headwise_linear O"] = lambda: headwise_linear(wide(0, 2**29, 2**17), wide(2**17, 16, 1))
CALLS["gated_activation"] = lambda: gated_activation(wide(0, 2**29, 2**20))
CALLS["soft_cap"] = lambda: soft_cap(wide(0, 2**29, 2**20), 1.0)
token = wide(0, 1, 2**40), wide(0, 1, 2**40), wide(0, 1, 2**20), wide(0, 1), wide(0, 1)
none = MLSTMState(wide(0, 1, 2**40, 2**20), wide(0, 1, 2**40), wide(0, 1))
CALLS["mlstm_step"] = lambda: mlstm_step(*token, none)
CALLS["mlstm_step checked"] = lambda: mlstm_step(*token, none, eps=0.0)


@pytest.mark.parametrize("name", CALLS)
def test_products_that_overflow_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name.split()[0]}: .* {MESSAGE}"):
        CALLS[name]()


def test_raw_ops_refuse_them() -> None:
    ops, none, gates = torch.ops.xlstm_cuda, [None] * 8, (False, True, 1.0, 0.0)
    x, R, h = wide(0, 3, 4, 2**20, 2**20), wide(4, 2**20, 2**20, 2**20), wide(0, 3, 2**20, 2**20)
    saved, state = wide(0, 3, 5, 2**20, 2**20), h[:, 0]
    q, v, i = wide(0, 1, 3, 2**40), wide(0, 1, 3, 2**20), wide(0, 1, 3)
    C, n, m = wide(0, 1, 2**40, 2**20), wide(0, 1, 2**40), wide(0, 1)
    y, w = wide(0, 3, 2**29), wide(2**29, 2**20)
    cell = _ops.CELLS["slstm"]
    calls = [
        lambda: ops.recurrent_fwd(x, R, *none[:7], cell, 0, False, True),
        lambda: ops.recurrent_bwd(h, *none[:4], R, h, *none[:4], state, state, saved, None, None, cell, 0, False),
        lambda: ops.recurrent_step(x[:, 0], R, None, *[state] * 4, cell),
        lambda: ops.mlstm_fwd(q, q, v, i, i, *none[:5], *gates, 0, False),
        lambda: ops.mlstm_bwd(v, *none[:3], q, q, v, i, i, *none[:5], v, i, *none[:3], *gates, 0, False, True),
        lambda: ops.mlstm_step(q, q, v, i, i, C, n, m, *gates),
        lambda: ops.causal_conv1d_fwd(y, w, *none[:4], True),
        lambda: ops.causal_conv1d_bwd(y, None, y, w, *none[:4], True),
        lambda: ops.causal_conv1d_step_(y[:, 0], w, None, wide(0, 2**20 - 1, 2**29), True),
        lambda: ops.multihead_norm_gate_fwd(wide(0, 3, 2**29, 2**20), *none[:5], False, False, 0.0, 0.0),
        lambda: ops.multihead_norm_gate_bwd(y, wide(0, 3, 2**29, 2**20), *none[:5], False, False, 0.0, 0.0),
        lambda: ops.headwise_linear_fwd(wide(0, 2**29, 2**20), wide(2**18, 4, 4), None, None, None),
        lambda: ops.headwise_linear_bwd(y, None, wide(0, 2**29, 2**20), wide(2**18, 4, 4), None),
        lambda: ops.gated_activation_fwd(wide(0, 2**29, 2**20), None, 0),
        lambda: ops.soft_cap_fwd(wide(0, 2**29, 2**20), 1.0),
        lambda: ops.mlstm_step_(q, q, v, i, i, C, n, m, None, *gates),
        lambda: ops.mlstm_step_out_(q, q, v, i, i, C, n, m, C, n, m, *gates),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match=r"product of the sizes \(.*\) must be less than \d+, where 0 counts"):
            call()


def test_large_sizes_without_tokens_are_no_work() -> None:
    """Below the bound: weights that no machine could pack are not looked at."""
    R = torch.zeros(2**22).expand(4, 1, 2**22, 2**22)
    h, state = slstm(wide(0, 3, 4, 1, 2**22), R, return_state=True)
    assert h.shape == (0, 3, 1, 2**22) and state.c.shape == (0, 1, 2**22)
