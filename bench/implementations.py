"""The implementations: one entry each in IMPLEMENTATIONS, which says how to call it for each op it has.

A builder takes the op's tensors (its own copies, requiring grad where gradients are wanted) and returns a Call. What it
does before returning, such as bringing weights into another layout, is not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import xlstm_cuda
from xlstm_cuda import reference

from .ops import MLSTM_STATE, Op, Outputs, Shape, Tensors, lstm_state, mlstm_state, project, slstm_state


@dataclass(frozen=True)
class Call:
    run: Callable[[], Outputs]  # the op's outputs, in the op's shapes
    leaves: Tensors  # what gradients are taken for, by the op's names
    canonical: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)  # a leaf's layout to the op's


Builder = Callable[[Tensors], Call]


def _never(*_: Any) -> None:
    return None


@dataclass(frozen=True)
class Implementation:
    name: str
    builders: Mapping[str, Builder]  # by op
    devices: tuple[str, ...] = ("cpu", "cuda")
    missing: Callable[[], str | None] = _never  # why it cannot be used here, None if it can
    refuses: Callable[[str, Shape], str | None] = _never  # why it has no (op, shape)

    def why_not(self, op: Op, shape: Shape, device: str) -> str | None:
        """Why it cannot run this here, or None."""
        if op.name not in self.builders:
            return f"has no {op.name}"
        if device not in self.devices:
            return f"does not run on {device}"
        return self.missing() or self.refuses(op.name, shape)


def _library(backend: str) -> dict[str, Builder]:
    """The public functions with that backend."""

    def call(function: Callable[[Tensors], Outputs]) -> Builder:
        return lambda t: Call(lambda: function(t), t)

    def sequence(h: Any) -> Outputs:
        return (h,)

    def mlstm_step(t: Tensors) -> Outputs:
        h, state = xlstm_cuda.mlstm_step(t["q"], t["k"], t["v"], t["i"], t["f"], mlstm_state(t), backend=backend)
        return (h, *state)

    def slstm_step(t: Tensors) -> Outputs:
        h, state = xlstm_cuda.slstm_step(t["x"], t["R"], t["b"], slstm_state(t), backend=backend)
        return (h, *state[1:])

    def lstm_step(t: Tensors) -> Outputs:
        h, state = xlstm_cuda.lstm_step(project(t), t["R"], t["b"], lstm_state(t), backend=backend)
        return (h, *state[1:])

    return {
        "mlstm": call(lambda t: sequence(xlstm_cuda.mlstm(**t, backend=backend))),
        "mlstm_step": call(mlstm_step),
        "slstm": call(lambda t: sequence(xlstm_cuda.slstm(**t, backend=backend))),
        "slstm_step": call(slstm_step),
        "lstm": call(lambda t: sequence(xlstm_cuda.lstm(project(t), t["R"], t["b"], backend=backend))),
        "lstm_step": call(lstm_step),
    }


def _qkvif(t: Tensors) -> tuple[Tensor, ...]:
    return tuple(t[name] for name in ("q", "k", "v", "i", "f"))


def _inplace_step(t: Tensors) -> Call:
    """Decoding as it is used: the state is overwritten, so each call continues from the last."""

    def run() -> Outputs:
        h, state = xlstm_cuda.mlstm_step(t["q"], t["k"], t["v"], t["i"], t["f"], mlstm_state(t), inplace=True)
        return (h, *state)

    return Call(run, t)


def _chunkwise(t: Tensors) -> Call:
    def run() -> Outputs:
        h: Any = reference.mlstm_chunkwise(**t)
        return (h,)

    return Call(run, t)


def _torch_lstm(t: Tensors) -> Call:
    D = t["u"].shape[-1]
    module = nn.LSTM(D, D, batch_first=True, device=t["u"].device, dtype=t["u"].dtype)
    _load(module, ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"), t)
    leaves = {"u": t["u"], "W": module.weight_ih_l0, "R": module.weight_hh_l0, "b": module.bias_ih_l0}
    return Call(lambda: (module(t["u"])[0].unsqueeze(2),), leaves, _TORCH_LSTM_LAYOUT)


def _torch_lstm_cell(t: Tensors) -> Call:
    D = t["u"].shape[-1]
    module = nn.LSTMCell(D, D, device=t["u"].device, dtype=t["u"].dtype)
    _load(module, ("weight_ih", "weight_hh", "bias_ih", "bias_hh"), t)
    state = t["h"].squeeze(1).to(t["u"].dtype), t["c"].squeeze(1).to(t["u"].dtype)

    def run() -> Outputs:
        h, c = module(t["u"], state)
        return h.unsqueeze(1), c.unsqueeze(1)

    return Call(run, t)


_TORCH_LSTM_LAYOUT: dict[str, Callable[[Tensor], Tensor]] = {
    "R": lambda x: x.unflatten(0, (4, 1, -1)),
    "b": lambda x: x.unflatten(0, (4, 1, -1)),
}


def _load(module: nn.Module, names: tuple[str, ...], t: Tensors) -> None:
    """W, R and b into a module's input weight, recurrent weight and first bias, the second is zero."""
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, value in zip(names, (t["W"], t["R"], t["b"], torch.zeros_like(t["b"])), strict=True):
            parameters[name].copy_(value.reshape(parameters[name].shape))
            parameters[name].requires_grad_(t["W"].requires_grad)


def _one_head(op: str, shape: Shape) -> str | None:
    return None if shape["H"] == 1 else "has one head only"


def _xlstm_slstm(t: Tensors) -> Call:
    """The plain PyTorch sLSTM cell of the `xlstm` package: tokens first, gates beside the output rows of R."""
    from xlstm.blocks.slstm.src.vanilla import slstm_forward, slstm_pointwise_function_registry

    x: Tensor = t["x"]
    _, H, D = t["b"].shape
    grad = x.requires_grad
    R = t["R"].detach().transpose(0, 1).reshape(H, 4 * D, D).requires_grad_(grad)  # (H, 4 D, D)
    b = t["b"].detach().flatten().to(x.dtype).requires_grad_(grad)
    states = x.new_zeros(4, x.shape[0], H * D)
    pointwise = slstm_pointwise_function_registry["slstm"]

    def run() -> Outputs:
        h = slstm_forward(x.transpose(0, 1).flatten(2), states, R, b, pointwise)[0][0, 1:]  # (S, B, H D)
        return (h.transpose(0, 1).unflatten(2, (H, D)),)

    canonical = {"R": lambda g: g.unflatten(1, (4, D)).transpose(0, 1), "b": lambda g: g.unflatten(0, (4, H, D))}
    return Call(run, {"x": x, "R": R, "b": b}, canonical)


def _mlstm_kernels(t: Tensors) -> Call:
    from mlstm_kernels.torch import get_mlstm_kernel

    kernel = get_mlstm_kernel("chunkwise--native_autograd")
    return Call(lambda: (kernel(*_qkvif(t), chunk_size=_peer_chunk(t["q"].shape[2])),), t)


def _mlstm_kernels_step(t: Tensors) -> Call:
    from mlstm_kernels.torch import get_mlstm_step_kernel

    kernel = get_mlstm_step_kernel("native")
    q, k, v, i, f = _qkvif(t)
    C, n, m = (t[name] for name in MLSTM_STATE)
    i, f, m = i[..., None], f[..., None], m[..., None]

    def run() -> Outputs:
        h, (C1, n1, m1) = kernel(q, k, v, i, f, C, n, m, dtype_state=C.dtype)
        return h, C1, n1, m1.squeeze(-1)

    return Call(run, t)


def _peer_chunk(S: int) -> int:
    return min(64, S)


def _whole_chunks(op: str, shape: Shape) -> str | None:
    return None if op != "mlstm" or shape["S"] % _peer_chunk(shape["S"]) == 0 else "needs S divisible by 64"


def _without(package: str) -> str | None:
    return None if find_spec(package) else f"needs the package {package}, which is not installed"


def _without_cuda() -> str | None:
    from xlstm_cuda import _ops

    if not torch.cuda.is_available():
        return "needs a CUDA device"
    return None if _ops.has_cuda() else "is not in this build of xlstm_cuda"


OURS = ("cpu", "cuda")  # what the others are compared with in reports

IMPLEMENTATIONS: dict[str, Implementation] = {
    impl.name: impl
    for impl in (
        Implementation("cpu", _library("cpu"), ("cpu",)),
        Implementation("cuda", _library("cuda"), ("cuda",), _without_cuda),
        Implementation("inplace", {"mlstm_step": _inplace_step}),
        Implementation("reference", _library("reference")),
        Implementation("reference-chunkwise", {"mlstm": _chunkwise}),
        Implementation("torch.nn.LSTM", {"lstm": _torch_lstm}, refuses=_one_head),
        Implementation("torch.nn.LSTMCell", {"lstm_step": _torch_lstm_cell}, refuses=_one_head),
        Implementation("xlstm", {"slstm": _xlstm_slstm}, missing=partial(_without, "xlstm")),
        Implementation(
            "mlstm_kernels",
            {"mlstm": _mlstm_kernels, "mlstm_step": _mlstm_kernels_step},
            missing=partial(_without, "mlstm_kernels"),
            refuses=_whole_chunks,
        ),
    )
}
