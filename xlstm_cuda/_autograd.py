"""Gradients of the sequence functions: autograd.Functions that call only the compiled ops.

The first argument of both is an operator namespace (torch.ops.xlstm_cuda or the test executor's). Gradients are exact,
for every input, the initial and the final state. Second derivatives raise: the backward ops carry a formula that does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from xlstm_cuda._ops import CELLS, library, refuse_transforms


class MLSTM(Function):
    """h, C, n, m = MLSTM.apply(namespace, options, keep, q, k, v, i, f, *initial_state, cu_seqlens, reset)

    options: MlstmOptions. initial_state: C, n and m, or three times None. Saved for backward: the inputs, h, and
    r (B, H, S), the product of query and normaliser state of each token. keep: also what CUDA kernels would compute
    again, and with it the final C and n.
    """

    @staticmethod
    def forward(
        ctx: Any, namespace: str, options: tuple[Any, ...], keep: bool, *inputs: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        h, C, n, m, r, kept = library(namespace).mlstm_fwd.default(*inputs, *options, keep)
        ctx.save_for_backward(*inputs, h, r, *((C, n, kept) if keep else (None,) * 3))
        ctx.namespace, ctx.options, ctx.dtypes = namespace, options, _dtypes(inputs[:8])
        ctx.set_materialize_grads(False)
        return h, C, n, m

    @staticmethod
    def backward(ctx: Any, dh: Tensor | None, *dstate: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        dh = torch.zeros_like(saved[10]) if dh is None else dense(dh)
        results = library(ctx.namespace).mlstm_bwd.default(dh, *map(dense, dstate), *saved, *ctx.options)
        return (None, None, None, *_for_inputs(results, ctx.dtypes, ctx.needs_input_grad[3:11]), None, None)


class Recurrent(Function):
    """h, hT, cT, nT, mT = Recurrent.apply(namespace, options, x, R, b, *initial_state, lengths, reset)

    options: RecurrentOptions. initial_state: h, c, n and m, each or None. nT and mT are empty for the LSTM. Saved for
    backward: R, h, the initial state, the final c and n, and five values per hidden unit and token, on CUDA in the
    dtype of h, on a CPU in the state's.
    """

    @staticmethod
    def forward(
        ctx: Any, namespace: str, options: Any, *inputs: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        h, hT, cT, nT, mT, saved = library(namespace).recurrent_fwd.default(*inputs, *options, True)
        ctx.save_for_backward(inputs[1], h, *inputs[3:7], cT, nT, saved, *inputs[7:])
        ctx.namespace, ctx.options, ctx.dtypes = namespace, options, _dtypes(inputs[:7])
        ctx.set_materialize_grads(False)
        return h, hT, cT, nT, mT

    @staticmethod
    def backward(ctx: Any, dh: Tensor | None, *dstate: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        dh = torch.zeros_like(saved[1]) if dh is None else dense(dh)
        if ctx.options.cell == CELLS["lstm"]:
            dstate = (*dstate[:2], None, None)
        results = library(ctx.namespace).recurrent_bwd.default(dh, *map(dense, dstate), *saved, *ctx.options)
        return (None, None, *_for_inputs(results, ctx.dtypes, ctx.needs_input_grad[2:9]), None, None)


class CausalConv1d(Function):
    """y, state = CausalConv1d.apply(namespace, silu, x, weight, bias, initial_state, cu_seqlens, reset)

    Saved for backward: the inputs.
    """

    @staticmethod
    def forward(ctx: Any, namespace: str, silu: bool, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        y, state = library(namespace).causal_conv1d_fwd.default(*inputs, silu)
        ctx.save_for_backward(*inputs)
        ctx.namespace, ctx.silu, ctx.dtypes = namespace, silu, _dtypes(inputs[:4])
        ctx.set_materialize_grads(False)
        return y, state

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dstate: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        dy = torch.zeros_like(saved[0]) if dy is None else dense(dy)
        results = library(ctx.namespace).causal_conv1d_bwd.default(dy, dense(dstate), *saved, ctx.silu)
        return (None, None, *_for_inputs(results, ctx.dtypes, ctx.needs_input_grad[2:6]), None, None)


class MultiheadNormGate(Function):
    """y = MultiheadNormGate.apply(namespace, options, h, weight, bias, gate, skip, skip_weight)

    options: NormOptions. Saved for backward: the inputs.
    """

    @staticmethod
    def forward(ctx: Any, namespace: str, options: tuple[Any, ...], *inputs: Tensor | None) -> Tensor:
        y: Tensor = library(namespace).multihead_norm_gate_fwd.default(*inputs, *options)
        ctx.save_for_backward(*inputs)
        ctx.namespace, ctx.options, ctx.dtypes = namespace, options, _dtypes(inputs)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        results = library(ctx.namespace).multihead_norm_gate_bwd.default(dense(dy), *ctx.saved_tensors, *ctx.options)
        return (None, None, *_for_inputs(results, ctx.dtypes, ctx.needs_input_grad[2:]))


class HeadwiseLinear(Function):
    """y0, y1 = HeadwiseLinear.apply(namespace, x, weight0, weight1, bias0, bias1)

    y1 is empty without weight1. Saved for backward: x and the weights.
    """

    @staticmethod
    def forward(ctx: Any, namespace: str, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        y0, y1 = library(namespace).headwise_linear_fwd.default(*inputs)
        ctx.save_for_backward(*inputs[:3])
        ctx.namespace, ctx.dtypes = namespace, _dtypes(inputs)
        ctx.set_materialize_grads(False)
        return y0, y1

    @staticmethod
    def backward(ctx: Any, dy0: Tensor | None, dy1: Tensor | None) -> tuple[Tensor | None, ...]:
        """A map whose output nobody used is left out."""
        x, *weights = ctx.saved_tensors
        used = [n for n, (dy, w) in enumerate(zip((dy0, dy1), weights, strict=True)) if not (dy is None or w is None)]
        if not used:
            return (None,) * 6
        absent = [None] * (2 - len(used))
        dys = [dense((dy0, dy1)[n]) for n in used]
        results = library(ctx.namespace).headwise_linear_bwd.default(
            *dys, *absent, x, *(weights[n] for n in used), *absent
        )
        grads: list[Tensor | None] = [results[0], None, None, None, None]
        for place, n in enumerate(used):
            grads[1 + n], grads[3 + n] = results[1 + place], results[3 + place]
        return (None, *_for_inputs(grads, ctx.dtypes, ctx.needs_input_grad[1:]))


class GatedActivation(Function):
    """y = GatedActivation.apply(namespace, activation, x, gate)

    Saved for backward: the inputs. Without a gate the gradient is one tensor.
    """

    @staticmethod
    def forward(ctx: Any, namespace: str, activation: int, x: Tensor, gate: Tensor | None) -> Tensor:
        y: Tensor = library(namespace).gated_activation_fwd.default(x, gate, activation)
        ctx.save_for_backward(x, gate)
        ctx.namespace, ctx.activation = namespace, activation
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gate = ctx.saved_tensors
        dx, dgate = library(ctx.namespace).gated_activation_bwd.default(dense(dy), x, gate, ctx.activation)
        return None, None, dx, None if gate is None else dgate


class SoftCap(Function):
    """y = SoftCap.apply(namespace, cap, x)

    Saved for backward: x.
    """

    @staticmethod
    def forward(ctx: Any, namespace: str, cap: float, x: Tensor) -> Tensor:
        y: Tensor = library(namespace).soft_cap_fwd.default(x, cap)
        ctx.save_for_backward(x)
        ctx.namespace, ctx.cap = namespace, cap
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, library(ctx.namespace).soft_cap_bwd.default(dense(dy), *ctx.saved_tensors, ctx.cap)


def check_transforms() -> None:
    """Raises RuntimeError inside of torch.func's transforms, for which these functions have no rules."""
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        refuse_transforms()


def dense(x: Tensor | None) -> Tensor | None:
    """x, copied if its last dimension is not contiguous: what the ops require of every tensor."""
    if x is None or x.stride(-1) == 1 or x.shape[-1] == 1:
        return x
    return x.clone(memory_format=torch.contiguous_format)  # x.contiguous() keeps the strides of empty tensors


def _dtypes(inputs: tuple[Tensor | None, ...]) -> tuple[torch.dtype | None, ...]:
    return tuple(None if x is None else x.dtype for x in inputs)


def _for_inputs(
    results: Sequence[Tensor | None], dtypes: tuple[torch.dtype | None, ...], needed: tuple[bool, ...]
) -> list[Tensor | None]:
    """Gradients in the dtypes of their inputs, None where none is asked for."""
    rows = zip(results, dtypes, needed, strict=True)
    return [grad.to(dtype) if need and dtype and grad is not None else None for grad, dtype, need in rows]
