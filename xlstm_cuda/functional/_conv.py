"""causal_conv1d and its step: from its arguments to the ops."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from xlstm_cuda import _autocast, _checks, reference
from xlstm_cuda._autograd import CausalConv1d
from xlstm_cuda._backend import in_onnx_graph, resolve
from xlstm_cuda._ops import library
from xlstm_cuda._transforms import dense
from xlstm_cuda.functional._calls import computed, exportable


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    reset: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal depthwise convolution over time: every feature by itself, K inputs up to the token's own.

        y[t] = act(bias + sum_j weight[:, j] x[t - K + 1 + j])        j = 0 .. K - 1

    Args:
        x: inputs (B, S, F), dtype T.
        weight: (F, K), K >= 1, as torch.nn.Conv1d(F, F, K, groups=F) has it without its middle dimension.
        bias: (F,) or None.
        activation: None, or "silu": act(p) = p sigmoid(p).
        initial_state: the inputs before x (B, K - 1, F), which count as rounded to T; None: zeros.
        return_state: also return the last K - 1 inputs, zeros where a reset hides them.
        reset: bool (B, S): inputs before that token, the state's too, count as zeros from there on.
        cu_seqlens: int32 (N+1,), 0 = cu_seqlens[0] <= ... <= cu_seqlens[N] = S: N sequences packed in one row (B = 1).
            The initial and the returned state have N rows.
        backend: see help(xlstm_cuda.functional).

    Returns:
        y (B, S, F) of dtype T, contiguous. With return_state (y, state), the state (B, K - 1, F) of dtype T.

    Sums are in A. Autocast leaves all of it as it is: y has the dtype of x. Inf and NaN reach only the tokens that see
    them. Saved for backward: the inputs.

    Raises:
        TypeError, ValueError, ImportError: see help(xlstm_cuda.functional).
    """
    given = {"bias": bias, "initial_state": initial_state}
    _checks.tensors("causal_conv1d", x=x, weight=weight, **{k: t for k, t in given.items() if t is not None})
    _checks.flags("causal_conv1d", return_state=return_state)
    _checks.activation("causal_conv1d", activation)
    _checks.causal_conv1d(x, weight, bias, initial_state, cu_seqlens, reset)
    namespace = resolve("causal_conv1d", backend, x.device, "causal_conv1d_fwd")
    if namespace is None:
        if in_onnx_graph(backend):
            _checks.for_onnx("causal_conv1d", cu_seqlens=cu_seqlens)
        with _autocast.disabled(x.device.type):
            return reference.causal_conv1d(
                *(x, weight, bias),
                activation=activation,
                initial_state=initial_state,
                return_state=return_state,
                reset=reset,
                cu_seqlens=cu_seqlens,
            )
    y, state = _convolve(namespace, activation, x, weight, bias, initial_state, cu_seqlens, reset)
    return (y, state) if return_state else y


def causal_conv1d_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    *,
    activation: str | None = None,
    inplace: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One token, or up to 16, of `causal_conv1d`, for decoding.

    Args:
        x: (B, F), or (B, S, F) with S <= 16, dtype T.
        weight, bias: as in `causal_conv1d`.
        state: the inputs before x (B, K - 1, F), or None for zeros.
        activation: None or "silu".
        inplace: overwrite the state and return it. It must have dtype T, a contiguous last dimension and no overlap in
            memory; no input may share its memory, which is not checked. Refused (ValueError) where an input or the
            state requires grad.
        backend: see help(xlstm_cuda.functional).

    Returns:
        y, shaped as x, of dtype T, and the last K - 1 inputs (B, K - 1, F), dtype T.

    Raises:
        TypeError, ValueError, ImportError: see help(xlstm_cuda.functional).
    """
    op = "causal_conv1d_step"
    given = {"bias": bias, "state": state}
    _checks.tensors(op, x=x, weight=weight, **{k: t for k, t in given.items() if t is not None})
    _checks.flags(op, inplace=inplace)
    _checks.activation(op, activation)
    _checks.causal_conv1d_step(x, weight, bias, state, inplace=inplace)
    if state is None:
        state = x.new_zeros(x.shape[0], weight.shape[1] - 1, x.shape[-1])
    namespace = resolve(op, backend, x.device, "causal_conv1d_step_" if inplace else "causal_conv1d_fwd")
    if namespace is None:
        if in_onnx_graph(backend):
            _checks.for_onnx("causal_conv1d_step", inplace=inplace)
        with _autocast.disabled(x.device.type):
            return reference.causal_conv1d_step(x, weight, bias, state, activation=activation, inplace=inplace)
    if inplace:
        inputs = (dense(x), dense(weight), dense(bias), state)
        y = library(namespace).causal_conv1d_step_.default(*inputs, activation == "silu")
        if not torch.compiler.is_compiling():
            torch.autograd.graph.increment_version(state)  # a graph that saved the old state must notice
        return y, state
    tokens = x if x.ndim == 3 else x.unsqueeze(1)
    y, after = _convolve(namespace, activation, tokens, weight, bias, state)
    return y.view(x.shape), after


# Below the arguments.


class ConvOptions(NamedTuple):
    """What the ops take after their tensors."""

    silu: bool

    def plain(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        state: Tensor | None,
        cu_seqlens: Tensor | None,
        reset: Tensor | None,
    ) -> tuple[Tensor, ...]:
        _checks.cu_seqlens_for_all("causal_conv1d", cu_seqlens)
        y, after = reference.causal_conv1d(
            *(x, weight, bias),
            activation="silu" if self.silu else None,
            initial_state=state,
            return_state=True,
            reset=reset,
            cu_seqlens=cu_seqlens,
        )
        return y, after


def _convolve(
    namespace: str,
    activation: str | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    cu_seqlens: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    options, inputs = ConvOptions(activation == "silu"), (x, weight, bias, state, cu_seqlens, reset)
    y, after = _sequence(namespace, options, inputs)
    return y, after


_sequence = exportable("causal_conv1d_fwd", ConvOptions, partial(computed, CausalConv1d))
