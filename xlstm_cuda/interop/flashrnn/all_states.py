"""c, n and m after every token, which the kernels do not keep, from the h that they gave.

With h known, the gates of all tokens are one product, and a token waits for the one before in a few element-wise
operations only: one for c of an LSTM, three for m, c and n of an sLSTM.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ... import _autocast, functional
from ..._states import LSTMState, SLSTMState
from ..._transforms import in_forward_mode, in_transform


def all_states(dtype: torch.dtype, h: Tensor, x: Tensor, R: Tensor, b: Tensor, state: Tensor) -> Tensor:
    """(S, B, T, H, D), the first of them h.

    h (B, T, H, D), what the kernel made of x (B, T, 4, H, D), R, b and state (S, B, H, D). The others are found in
    float32 at least. torch's transforms and compiler trace the steps themselves.
    """
    if in_transform() or in_forward_mode() or torch.compiler.is_compiling():
        others = _step_by_step(_gates(h, x, R, b, state), state)
        return torch.cat([h[None].to(dtype), others.to(dtype)])
    found: Tensor = AllStates.apply(dtype, h, x, R, b, state)
    return found


class AllStates(torch.autograd.Function):
    """`all_states` outside of transforms. Programs read h alone as a rule, so nothing is saved for the gradients of the
    others: these are found step by step where there are some.
    """

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, h: Tensor, x: Tensor, R: Tensor, b: Tensor, state: Tensor) -> Tensor:
        ctx.save_for_backward(h, x, R, b, state)
        found = torch.empty(len(state), *h.shape, dtype=dtype, device=h.device)
        found[0] = h
        gates = _gates(h, x, R, b, state)
        (_cells if len(state) == 2 else _stabilised_cells)(gates, state[1:].to(gates.dtype), found[1:])
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        again = torch.is_grad_enabled()  # these gradients are to be differentiated in turn
        dh = grad[0].to(ctx.saved_tensors[0].dtype)
        if not again and not grad[1:].any():
            return None, dh, None, None, None, None
        with torch.enable_grad(), _autocast.disabled(grad.device.type):
            # Views: h comes from the others, and what goes through it is not to be counted twice.
            inputs = [
                tensor.view_as(tensor) if again and tensor.requires_grad else tensor.detach().requires_grad_()
                for tensor in ctx.saved_tensors
            ]
            states = _step_by_step(_gates(*inputs), inputs[-1])
            weights = grad[1:].to(states.dtype)
            found = torch.autograd.grad(states, inputs, weights, create_graph=again, allow_unused=True)
        return None, dh if found[0] is None else dh + found[0], *found[1:]


def _gates(h: Tensor, x: Tensor, R: Tensor, b: Tensor, state: Tensor) -> Tensor:
    """Pre-activations of i, f and z (3, B, T, H, D), in float32 at least; o is in h already."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    before = torch.cat([state[0, :, None].to(h.dtype), h], 1)[:, : x.shape[1]].to(dtype)
    weights = R[:3].to(dtype).permute(1, 3, 0, 2).flatten(2)  # (H, P, 3 D)
    inputs = (x[:, :, :3].to(dtype) + b[:3].to(dtype)).permute(3, 0, 1, 2, 4)  # (H, B, T, 3, D)
    gates = torch.baddbmm(
        inputs.reshape(len(weights), -1, weights.shape[2]), before.permute(2, 0, 1, 3).flatten(1, 2), weights
    )
    return gates.view(inputs.shape).permute(3, 1, 2, 0, 4)


def _cells(gates: Tensor, state: Tensor, found: Tensor) -> None:
    """c of an LSTM (1, B, T, H, D) from gates (3, B, T, H, D) and the c before them (1, B, H, D)."""
    i, f, z = gates
    found[:] = _decaying_sum(torch.sigmoid(f), (torch.sigmoid(i) * torch.tanh(z))[None], state)


def _stabilised_cells(gates: Tensor, state: Tensor, found: Tensor) -> None:
    """c, n and m of an sLSTM (3, B, T, H, D), as `functional.slstm` defines them."""
    i, f, z = gates
    c, n, m = state
    empty = n == 0
    decayed, highest = logsigmoid(f), torch.empty_like(i)
    m = m.masked_fill(empty, -torch.inf)
    for t in range(i.shape[1]):
        decayed[:, t] += m
        m = torch.maximum(decayed[:, t], i[:, t], out=highest[:, t])
    nothing = highest == -torch.inf  # an empty element, and nothing written to it
    shift = highest.masked_fill(nothing, 0)
    forget, write = torch.exp(decayed - shift), torch.exp(i - shift)
    found[:2] = _decaying_sum(forget, torch.stack([write * torch.tanh(z), write]), torch.stack([c, n]) * ~empty)
    found[2] = shift


def _decaying_sum(decay: Tensor, added: Tensor, before: Tensor) -> Tensor:
    """y_t = decay_t y_{t-1} + added_t, in added (N, B, T, ...), from decay (B, T, ...) and the y before (N, B, ...)."""
    for t in range(decay.shape[1]):
        before = added[:, :, t].addcmul_(decay[:, t], before)
    return added


def _step_by_step(gates: Tensor, state: Tensor) -> Tensor:
    """c, n and m (S - 1, B, T, H, D) again, differentiable: the cell of the library, without recurrent weights."""
    heads = gates.shape[3:]
    if not gates.shape[2]:
        return state[1:, :, None].expand(-1, -1, 0, -1, -1)
    gates = torch.cat([gates, gates[:1]]).flatten(3)[..., None]  # any o: of h nothing is taken
    state = state.flatten(2)[..., None]
    none = gates.new_zeros(4, gates.shape[3], 1, 1)
    after: Any = LSTMState(*state) if len(state) == 2 else SLSTMState(*state)
    step = cast(Any, functional.lstm_step if len(state) == 2 else functional.slstm_step)
    found = []
    for x in gates.unbind(2):
        _, after = step(x.transpose(0, 1), none, None, after)
        found.append(torch.stack(after[1:]))
    return torch.stack(found, 2).squeeze(-1).unflatten(3, heads)
