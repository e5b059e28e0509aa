"""Gradients of the sequence functions: autograd.Functions that call only the compiled ops.

The first argument of all is an operator namespace (torch.ops.xlstm_cuda or the test executor's), the second the options
of the op. Gradients are exact, for every input, the initial and the final state. Each class says where rows and heads
lie in its inputs and outputs, and `_transforms` makes second derivatives and torch.func of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from xlstm_cuda._batching import NEVER, SHARED, Axes, Tensors
from xlstm_cuda._kept import worth_keeping
from xlstm_cuda._ops import CELLS, accumulate_dtype, library, on_cuda_kernels
from xlstm_cuda._transforms import Call, FirstOrder, dense, gradients, is_differentiated


class MLSTM(FirstOrder):
    """h, C, n, m = MLSTM.apply(namespace, options, q, k, v, i, f, *initial_state, cu_seqlens, reset)

    options: MlstmOptions. initial_state: C, n and m, or three times None. Saved for backward: the inputs, h, and
    r (B, H, S), the product of query and normaliser state of each token. Where it is worth its memory also what CUDA
    kernels would compute again, and with it the final C and n.
    """

    ROWS = Axes((*[0] * 8, NEVER, 0), (0,) * 4)
    HEADS = Axes((*[1] * 8, SHARED, SHARED), (1,) * 4)

    @staticmethod
    def values(namespace: str, options: Any, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        h, C, n, m, _, _ = library(namespace).mlstm_fwd.default(*inputs, *options)
        return h, C, n, m

    @staticmethod
    def forward(
        ctx: Any, namespace: str, options: Any, *inputs: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        keep = _keeps(namespace, options, *inputs)
        h, C, n, m, r, kept = library(namespace).mlstm_fwd.default(*inputs, *options, keep)
        ctx.save_for_backward(*inputs, h, r, *((C, n, kept) if keep else (None,) * 3))
        ctx.namespace, ctx.options, ctx.dtypes = namespace, options, _dtypes(inputs[:8])
        ctx.set_materialize_grads(False)
        return h, C, n, m

    @staticmethod
    def backward(ctx: Any, dh: Tensor | None, *dstate: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        if is_differentiated():
            return _differentiated(ctx, saved[:10], (dh, *dstate))
        dh = torch.zeros_like(saved[10]) if dh is None else dense(dh)
        results = library(ctx.namespace).mlstm_bwd.default(dh, *map(dense, dstate), *saved, *ctx.options)
        return (None, None, *_for_inputs(results, ctx.dtypes, ctx.needs_input_grad[2:10]), None, None)


class Recurrent(FirstOrder):
    """h, hT, cT, nT, mT = Recurrent.apply(namespace, options, x, R, b, *initial_state, lengths, reset)

    options: RecurrentOptions. initial_state: h, c, n and m, each or None. The LSTM has neither nT nor mT. Saved for
    backward: the inputs, h, the final c and n, and five values per hidden unit and token, on CUDA in the dtype of h, on
    a CPU in the state's. x and b are for second derivatives only.
    """

    ROWS = Axes((0, SHARED, SHARED, *[0] * 6), (0,) * 5)
    HEADS = Axes((3, 1, 1, *[1] * 4, SHARED, SHARED), (2, *[1] * 4))
    INNER = True

    @staticmethod
    def with_heads(options: Any, factor: int) -> Any:
        return options._replace(reversed_heads=options.reversed_heads * factor)

    @staticmethod
    def shared_gradients(options: Any, inputs: Tensors, dx: Tensor, h: Tensor, size: int) -> dict[int, Tensor]:
        """Those of R and b: with more heads R would be read once for each element of the batch."""
        _, _, b, h0, *_, lengths, reset = inputs
        wide, before = accumulate_dtype(h.dtype), _h_before(h, h0, lengths, reset, options.reversed_heads)
        # The rows of an element are every size-th one.
        dx, before = (x.to(wide).unflatten(0, (x.shape[0] // size, size)) for x in (dx, before))
        grads = {1: torch.einsum("bvsghi,bvshj->vghij", dx, before).to(h.dtype)}
        return grads if b is None else grads | {2: dx.sum((0, 2)).to(b.dtype)}

    @staticmethod
    def values(namespace: str, options: Any, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        h, hT, cT, nT, mT, _ = library(namespace).recurrent_fwd.default(*inputs, *options, False)
        return (h, hT, cT) if options.cell == CELLS["lstm"] else (h, hT, cT, nT, mT)

    @staticmethod
    def laid_out(inputs: Tensors) -> list[Tensor | None]:
        """R, the second one, is copied unless its rows or columns are contiguous: a layer may keep it either way."""
        x, R, *rest = inputs
        assert R is not None
        either = R.stride(-1) == 1 or R.stride(-2) == 1
        return [dense(x), R if either else R.contiguous(), *map(dense, rest)]

    @staticmethod
    def forward(ctx: Any, namespace: str, options: Any, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        h, hT, cT, nT, mT, saved = library(namespace).recurrent_fwd.default(*inputs, *options, True)
        ctx.save_for_backward(*inputs, h, cT, nT, saved)
        ctx.namespace, ctx.options, ctx.dtypes = namespace, options, _dtypes(inputs[:7])
        ctx.set_materialize_grads(False)
        return (h, hT, cT) if options.cell == CELLS["lstm"] else (h, hT, cT, nT, mT)

    @staticmethod
    def backward(ctx: Any, dh: Tensor | None, *dstate: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, h, cT, nT, saved = ctx.saved_tensors
        if is_differentiated():
            return _differentiated(ctx, inputs, (dh, *dstate))
        dh = torch.zeros_like(h) if dh is None else dense(dh)
        dstate = _four(map(dense, dstate))
        tensors = inputs[1], h, *inputs[3:7], cT, nT, saved, *inputs[7:]
        results = library(ctx.namespace).recurrent_bwd.default(dh, *dstate, *tensors, *ctx.options)
        return (None, None, *_for_inputs(results, ctx.dtypes, ctx.needs_input_grad[2:9]), None, None)


class BlockwiseRecurrent(FirstOrder):
    """h, hT, cT, nT, mT = BlockwiseRecurrent.apply(namespace, options, x, W, R, b, *initial_state, lengths)

    `Recurrent` of the gates x W^T, some tokens at a time: x (B, S, F), W (4, H, D, F). options: BlockwiseOptions. Saved
    for backward: the inputs, h, the state behind each block and five values per hidden unit and token. Gradients of
    weights are sums over blocks in the dtype of the weights, so that it has to be a wide one.
    """

    ROWS = Axes((0, *[SHARED] * 3, *[0] * 5), (0,) * 5)

    @staticmethod
    def values(namespace: str, options: Any, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        h, blocks = options.scan(namespace, inputs, save=False)
        return h, *options.carried(blocks[-1])

    @staticmethod
    def forward(ctx: Any, namespace: str, options: Any, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        h, blocks = options.scan(namespace, inputs, save=True)
        ctx.save_for_backward(*inputs, h, *(tensor for block in blocks for tensor in block))
        ctx.namespace, ctx.options, ctx.dtypes = namespace, options, _dtypes(inputs[:8])
        ctx.set_materialize_grads(False)
        return h, *options.carried(blocks[-1])

    @staticmethod
    def backward(ctx: Any, dh: Tensor | None, *dstate: Tensor | None) -> tuple[Tensor | None, ...]:
        (*inputs, h), tensors, options = ctx.saved_tensors[:10], ctx.saved_tensors[10:], ctx.options
        if is_differentiated():
            return _differentiated(ctx, inputs, (dh, *dstate))
        x, W, R, _, *initial, lengths = inputs
        dh, flat = torch.zeros_like(h) if dh is None else dh, W.flatten(0, 2)
        dxs: list[Tensor] = []
        dW, dR, db = torch.zeros_like(flat), torch.zeros_like(R), torch.zeros_like(R[..., 0])
        blocks = [tensors[first : first + 5] for first in range(0, len(tensors), 5)]
        for index, part in reversed(list(enumerate(options.parts(x.shape[1])))):
            _, c, n, _, values = blocks[index]
            before = initial if index == 0 else _four(options.carried(blocks[index - 1]))
            order = options.left(lengths, part), None, *options.recurrent
            dgates, dR_part, db_part, *rest = library(ctx.namespace).recurrent_bwd.default(
                dense(dh[:, part]), *_four(map(dense, dstate)), R, h[:, part], *before, c, n, values, *order
            )
            dstate = options.carried(rest)
            rows = dgates.reshape(-1, flat.shape[0])  # nothing in place: gradients may be batched
            if ctx.needs_input_grad[2]:
                dxs.insert(0, (rows @ flat).view(x[:, part].shape))
            if ctx.needs_input_grad[3]:
                dW = torch.addmm(dW, rows.t(), x[:, part].reshape(-1, x.shape[2]))
            dR, db = dR + dR_part, db + db_part
        dx = torch.cat(dxs, 1) if dxs else None
        results = dx, dW.view_as(W), dR, db, *_four(dstate)
        return (None, None, *_for_inputs(results, ctx.dtypes, ctx.needs_input_grad[2:10]), None)


class CausalConv1d(FirstOrder):
    """y, state = CausalConv1d.apply(namespace, options, x, weight, bias, initial_state, cu_seqlens, reset)

    options: ConvOptions. Saved for backward: the inputs.
    """

    ROWS = Axes((0, SHARED, SHARED, 0, NEVER, 0), (0, 0))
    HEADS = Axes((2, 0, 0, 2, SHARED, SHARED), (2, 2))  # a feature by itself is a head

    @staticmethod
    def values(namespace: str, options: Any, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        y, state = library(namespace).causal_conv1d_fwd.default(*inputs, *options)
        return y, state

    @staticmethod
    def forward(ctx: Any, namespace: str, options: Any, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*inputs)
        ctx.namespace, ctx.options, ctx.dtypes = namespace, options, _dtypes(inputs[:4])
        ctx.set_materialize_grads(False)
        return CausalConv1d.values(namespace, options, *inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dstate: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        if is_differentiated():
            return _differentiated(ctx, saved, (dy, dstate))
        dy = torch.zeros_like(saved[0]) if dy is None else dense(dy)
        results = library(ctx.namespace).causal_conv1d_bwd.default(dy, dense(dstate), *saved, *ctx.options)
        return (None, None, *_for_inputs(results, ctx.dtypes, ctx.needs_input_grad[2:6]), None, None)


class MultiheadNormGate(FirstOrder):
    """(y,) = MultiheadNormGate.apply(namespace, options, h, weight, bias, gate, skip, skip_weight)

    options: NormOptions. Saved for backward: the inputs.
    """

    ROWS = Axes((0, SHARED, SHARED, 0, 0, SHARED), (0,))
    HEADS = Axes((2, 0, 0, 2, 2, 0), (2,))

    @staticmethod
    def values(namespace: str, options: Any, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        return (library(namespace).multihead_norm_gate_fwd.default(*inputs, *options),)

    @staticmethod
    def forward(ctx: Any, namespace: str, options: Any, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*inputs)
        ctx.namespace, ctx.options, ctx.dtypes = namespace, options, _dtypes(inputs)
        return MultiheadNormGate.values(namespace, options, *inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        if is_differentiated():
            return _differentiated(ctx, saved, (dy,))
        results = library(ctx.namespace).multihead_norm_gate_bwd.default(dense(dy), *saved, *ctx.options)
        return (None, None, *_for_inputs(results, ctx.dtypes, ctx.needs_input_grad[2:]))


class HeadwiseLinear(FirstOrder):
    """y0, y1 = HeadwiseLinear.apply(namespace, options, x, weight0, weight1, bias0, bias1)

    options: HeadwiseOptions. No y1 without weight1. Saved for backward: the inputs; the biases are for second
    derivatives only.
    """

    ROWS = Axes((0, *[SHARED] * 4), (0, 0))
    HEADS = Axes((2, *[0] * 4), (2, 2))

    @staticmethod
    def values(namespace: str, options: Any, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        y0, y1 = library(namespace).headwise_linear_fwd.default(*inputs)
        return (y0,) if inputs[2] is None else (y0, y1)

    @staticmethod
    def forward(ctx: Any, namespace: str, options: Any, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*inputs)
        ctx.namespace, ctx.options, ctx.dtypes = namespace, options, _dtypes(inputs)
        ctx.set_materialize_grads(False)
        return HeadwiseLinear.values(namespace, options, *inputs)

    @staticmethod
    def backward(ctx: Any, *dys: Tensor | None) -> tuple[Tensor | None, ...]:
        """A map whose output nobody used is left out."""
        saved = ctx.saved_tensors
        if is_differentiated():
            return _differentiated(ctx, saved, dys)
        x, *weights = saved[:3]
        used = [n for n, dy in enumerate(dys) if dy is not None]
        if not used:
            return (None,) * 7
        absent = [None] * (2 - len(used))
        results = library(ctx.namespace).headwise_linear_bwd.default(
            *(dense(dys[n]) for n in used), *absent, x, *(weights[n] for n in used), *absent
        )
        grads: list[Tensor | None] = [results[0], None, None, None, None]
        for place, n in enumerate(used):
            grads[1 + n], grads[3 + n] = results[1 + place], results[3 + place]
        return (None, None, *_for_inputs(grads, ctx.dtypes, ctx.needs_input_grad[2:]))


class GatedActivation(FirstOrder):
    """(y,) = GatedActivation.apply(namespace, options, x, gate)

    options: GatedOptions. Saved for backward: the inputs. Without a gate the gradient is one tensor.
    """

    ROWS = Axes((0, 0), (0,))

    @staticmethod
    def values(namespace: str, options: Any, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        return (library(namespace).gated_activation_fwd.default(*inputs, *options),)

    @staticmethod
    def forward(ctx: Any, namespace: str, options: Any, x: Tensor, gate: Tensor | None) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, gate)
        ctx.namespace, ctx.options = namespace, options
        return GatedActivation.values(namespace, options, x, gate)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gate = ctx.saved_tensors
        if is_differentiated():
            return _differentiated(ctx, (x, gate), (dy,))
        dx, dgate = library(ctx.namespace).gated_activation_bwd.default(dense(dy), x, gate, *ctx.options)
        return None, None, dx, None if gate is None else dgate


class SoftCap(FirstOrder):
    """(y,) = SoftCap.apply(namespace, options, x)

    options: CapOptions. Saved for backward: x.
    """

    ROWS = Axes((0,), (0,))

    @staticmethod
    def values(namespace: str, options: Any, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        return (library(namespace).soft_cap_fwd.default(*inputs, *options),)

    @staticmethod
    def forward(ctx: Any, namespace: str, options: Any, x: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x)
        ctx.namespace, ctx.options = namespace, options
        return SoftCap.values(namespace, options, x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        if is_differentiated():
            return _differentiated(ctx, (x,), (dy,))
        return None, None, library(ctx.namespace).soft_cap_bwd.default(dense(dy), x, *ctx.options)


def _four(state: Iterable[Tensor | None]) -> tuple[Tensor | None, ...]:
    """h, c, n, m, or None for what the cell does not have."""
    return (*state, None, None)[:4]


def _h_before(
    h: Tensor, h0: Tensor | None, lengths: Tensor | None, reset: Tensor | None, reversed_heads: int
) -> Tensor:
    """What R multiplies at each token (B, S, H, D): h of the token before it, in the order of each head."""
    seqlen, cut = h.shape[1], h.shape[2] - reversed_heads
    first = h.new_zeros(h.shape[0], 1, *h.shape[2:]) if h0 is None else h0.to(h.dtype).unsqueeze(1)
    forward = torch.cat([first[:, :, :cut], h[:, :, :cut]], 1)[:, :seqlen]
    backward = torch.cat([h[:, :, cut:], first[:, :, cut:]], 1)[:, 1:]
    if lengths is not None:
        last = torch.arange(1, seqlen + 1, device=h.device) == lengths[:, None]
        backward = torch.where(last[..., None, None], first[:, :, cut:], backward)
    before = torch.cat([forward, backward], 2)
    return before if reset is None else before.masked_fill(reset[..., None, None], 0)


def _keeps(namespace: str, options: Any, q: Any, k: Any, v: Any, *_: Any) -> bool:
    return on_cuda_kernels(namespace, q) and worth_keeping(q, v, options.chunk_size)


def _differentiated(ctx: Any, inputs: Tensors, grads: Tensors) -> tuple[Tensor | None, ...]:
    """What the backward pass of a function here returns where `is_differentiated`."""
    call = Call(ctx._forward_cls, ctx.namespace, ctx.options)
    return None, None, *gradients(call, ctx.needs_input_grad[2:], inputs, grads)


def _dtypes(inputs: tuple[Tensor | None, ...]) -> tuple[torch.dtype | None, ...]:
    return tuple(None if x is None else x.dtype for x in inputs)


def _for_inputs(
    results: Sequence[Tensor | None], dtypes: tuple[torch.dtype | None, ...], needed: tuple[bool, ...]
) -> list[Tensor | None]:
    """Gradients in the dtypes of their inputs, None where none is asked for."""
    rows = zip(results, dtypes, needed, strict=True)
    return [grad.to(dtype) if need and dtype and grad is not None else None for grad, dtype, need in rows]
