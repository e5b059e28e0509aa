"""The implementations: one entry each in IMPLEMENTATIONS, which says how to call it for each op it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import xlstm_cuda
from xlstm_cuda import reference

from . import compiled
from .calls import Builder, Call, Claim, Implementation
from .claims import ATTENTION, DECAYED, WITHOUT_NORM_GRAD
from .cuda import graphed, inplace_step, inplace_step_in_16_bits, without_cuda, without_kernel
from .ops import OPS, Outputs, Shape, Tensors, lstm_state, mlstm_state, project, slstm_state
from .peers import flashrnn, mlstm_kernels, sdpa


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


def _chunkwise(t: Tensors) -> Call:
    def run() -> Outputs:
        h: Any = reference.mlstm_chunkwise(**t)
        return (h,)

    return Call(run, t)


def _without_norm_grad(t: Tensors) -> Call:
    def run() -> Outputs:
        h: Any = xlstm_cuda.mlstm(**t, norm_grad=False, backend=t["q"].device.type)
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


def _without(*packages: str) -> str | None:
    missing = next((package for package in packages if not find_spec(package)), None)
    return f"needs the package {missing}, which is not installed" if missing else None


def _on_cuda(
    name: str, builders: Mapping[str, Builder], graph: bool = False, claims: Mapping[str, Claim] | None = None
) -> Implementation:
    """An entry of ours that needs a device and the kernels; graph: each call in a CUDA graph."""
    if graph:
        builders = {op: graphed(builder) for op, builder in builders.items()}
    return Implementation(name, builders, ("cuda",), without_cuda, without_kernel, claims=claims or {})


def _flashrnn(name: str, backend: str, *packages: str, **more: Any) -> Implementation:
    builders, missing = flashrnn.builders(backend), partial(_without, "flashrnn", *packages)
    return Implementation(name, builders, ("cuda",), missing, peer=True, **more)


def _peer_on_cuda(name: str, mlstm: Builder, claim: Claim, *packages: str, **more: Any) -> Implementation:
    """A peer that has the mLSTM alone, or what is compared with it, and runs on a GPU alone."""
    missing, claims = partial(_without, *packages), {"mlstm": claim}
    return Implementation(name, {"mlstm": mlstm}, ("cuda",), missing, claims=claims, peer=True, **more)


_CELL_STEPS = {op: builder for op, builder in _library("cuda").items() if op in ("slstm_step", "lstm_step")}

OURS = ("cpu", "cuda")  # what the others are compared with in reports

IMPLEMENTATIONS: dict[str, Implementation] = {
    impl.name: impl
    for impl in (
        Implementation("cpu", _library("cpu"), ("cpu",)),
        _on_cuda("cuda", _library("cuda")),
        _on_cuda("cuda-norm-grad-off", {"mlstm": _without_norm_grad}, claims={"mlstm": WITHOUT_NORM_GRAD}),
        Implementation("inplace", {"mlstm_step": inplace_step}, ("cpu",)),
        _on_cuda("cuda-inplace", {"mlstm_step": inplace_step}),
        _on_cuda("cuda-inplace-bf16", {"mlstm_step": inplace_step_in_16_bits}),
        _on_cuda("cuda-graph", {"mlstm_step": inplace_step, **_CELL_STEPS}, graph=True),
        _on_cuda("cuda-graph-bf16", {"mlstm_step": inplace_step_in_16_bits}, graph=True),
        Implementation("reference", _library("reference")),
        Implementation("reference-chunkwise", {"mlstm": _chunkwise}),
        Implementation(
            "reference-compiled",
            {op: compiled.builder(op) for op in OPS},
            ("cpu",),
            missing=compiled.without_compiler,
            refuses=compiled.too_long,
        ),
        Implementation("torch.nn.LSTM", {"lstm": _torch_lstm}, refuses=_one_head, peer=True),
        Implementation("torch.nn.LSTMCell", {"lstm_step": _torch_lstm_cell}, refuses=_one_head, peer=True),
        Implementation("xlstm", {"slstm": mlstm_kernels.xlstm_slstm}, missing=partial(_without, "xlstm"), peer=True),
        Implementation(
            "mlstm_kernels",
            {"mlstm": mlstm_kernels.mlstm_chunkwise, "mlstm_step": mlstm_kernels.mlstm_step},
            missing=partial(_without, "mlstm_kernels"),
            refuses=mlstm_kernels.without_chunks,
            choices=mlstm_kernels.by_chunk_size,
            peer=True,
        ),
        _peer_on_cuda(
            *("mlstm_kernels-xl_chunk", sdpa.xl_chunk, WITHOUT_NORM_GRAD, "mlstm_kernels", "triton"),
            refuses=sdpa.without_whole_chunks,
            choices=sdpa.xl_chunk_sizes,
        ),
        _peer_on_cuda(
            *("mlstm_kernels-limit_chunk", sdpa.limit_chunk, WITHOUT_NORM_GRAD, "mlstm_kernels", "triton"),
            refuses=sdpa.without_whole_chunks,
            choices=sdpa.limit_chunk_sizes,
        ),
        _peer_on_cuda("fla-simple_gla", sdpa.simple_gla, DECAYED, "fla", "triton"),
        _flashrnn("flashrnn", "cuda_fused"),
        _flashrnn("flashrnn-alternating", "cuda"),
        _flashrnn("flashrnn-triton", "triton_fused", "triton", refuses=flashrnn.without_large_heads),
        _peer_on_cuda("sdpa", sdpa.attention, ATTENTION, choices=sdpa.attention_backends),
    )
}
