"""This library in the ways it can be called, and its reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

import xlstm_cuda
from xlstm_cuda import functional, reference

from . import compiled, glue, models
from .calls import Builder, Call, Implementation
from .claims import WITHOUT_NORM_GRAD
from .cuda import graphed, without_cuda, without_kernel
from .lstm_layer import layer_call
from .ops import KERNEL_OPS, MLSTM_STATE, Outputs, Tensors, lstm_state, mlstm_state, project, slstm_state

CUDA_CHUNK_SIZES = (64, 128, 256)  # of the chunkwise kernels


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


def _glue(backend: str) -> dict[str, Builder]:
    """The functions between the cells with that backend."""

    def builder(op: str) -> Builder:
        return lambda t: Call(lambda: glue.call(xlstm_cuda, op, t, backend=backend), t)

    return {op.name: builder(op.name) for op in glue.GLUE_OPS}


def _models(backend: str) -> dict[str, Builder]:
    """The models of the library, whose layers call its functions with that backend."""

    def built(model: Callable[[Tensors], nn.Module], prepare: models.Prepare) -> Builder:
        def build(t: Tensors) -> Call:
            module = models.with_parameters(model(t), t)
            call = prepare(module, t)

            def run() -> Outputs:
                with functional.backend(backend):
                    return call()

            return Call(run, models.leaves_of(module))

        return build

    def large(t: Tensors) -> nn.Module:
        return models.large(models.large_shape(t))

    return {
        "lm": built(lambda t: models.lm(models.lm_shape(t)), models.logits),
        "large_prefill": built(large, models.prefill),
        "large_step": built(large, models.step),
        "large_generate": built(large, models.generate),
    }


def _lstm_layer(t: Tensors) -> Call:
    """nn.LSTM: what takes the place of torch.nn.LSTM."""
    heads, head_dim = t["R"].shape[1:3]
    features = heads * head_dim
    call = layer_call(xlstm_cuda.nn.LSTM(features, features, batch_first=True, num_heads=heads, dtype=t["u"].dtype), t)

    def run() -> Outputs:
        with functional.backend("cpu"):
            return call.run()

    return replace(call, run=run)


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


def _in_chunks(t: Tensors, size: int) -> Call:
    def run() -> Outputs:
        h: Any = xlstm_cuda.mlstm(**t, chunk_size=size, backend=t["q"].device.type)
        return (h,)

    return Call(run, t)


_OF_CHUNK_SIZES = {f"chunk {size}": partial(_in_chunks, size=size) for size in CUDA_CHUNK_SIZES}


def inplace_step(t: Tensors) -> Call:
    """Decoding as it is used: the state is overwritten, so each call continues from the last."""
    backend = t["q"].device.type  # never the reference, which would be timed under our name

    def run() -> Outputs:
        args = (t["q"], t["k"], t["v"], t["i"], t["f"])
        h, state = xlstm_cuda.mlstm_step(*args, mlstm_state(t), inplace=True, backend=backend)
        return (h, *state)

    return Call(run, t)


def inplace_step_in_16_bits(t: Tensors) -> Call:
    """The same with C, nearly all of the state, in bfloat16: half the bytes."""
    call = inplace_step({**t, "C": t["C"].bfloat16()})
    state = [call.leaves[name] for name in MLSTM_STATE]
    nbytes = sum(x.nbytes for x in (*call.leaves.values(), t["v"], *state))  # t["v"]: h has its shape and dtype
    return Call(call.run, call.leaves, nbytes=nbytes)


def _on_cuda(name: str, builders: Mapping[str, Builder], graph: bool = False, **more: Any) -> Implementation:
    """Needs a device and the kernels; graph: each call in a CUDA graph; more: fields of Implementation."""
    if graph:
        builders = {op: graphed(builder) for op, builder in builders.items()}
    return Implementation(name, builders, ("cuda",), without_cuda, without_kernel, **more)


_CELL_STEPS = {op: builder for op, builder in _library("cuda").items() if op in ("slstm_step", "lstm_step")}

IMPLEMENTATIONS = (
    Implementation("cpu", _library("cpu") | _glue("cpu") | _models("cpu"), ("cpu",)),
    _on_cuda("cuda", _library("cuda") | _glue("cuda") | _models("cuda")),
    _on_cuda("cuda-norm-grad-off", {"mlstm": _without_norm_grad}, claims={"mlstm": WITHOUT_NORM_GRAD}),
    _on_cuda("cuda-best-chunk", {"mlstm": partial(_in_chunks, size=64)}, choices=lambda *_: _OF_CHUNK_SIZES),
    Implementation("inplace", {"mlstm_step": inplace_step}, ("cpu",)),
    Implementation("nn.LSTM", {"lstm": _lstm_layer}, ("cpu",)),
    _on_cuda("cuda-inplace", {"mlstm_step": inplace_step}),
    _on_cuda("cuda-inplace-bf16", {"mlstm_step": inplace_step_in_16_bits}),
    _on_cuda("cuda-graph", {"mlstm_step": inplace_step, **_CELL_STEPS}, graph=True),
    _on_cuda("cuda-graph-bf16", {"mlstm_step": inplace_step_in_16_bits}, graph=True),
    Implementation("reference", _library("reference") | _glue("reference")),
    Implementation("reference-chunkwise", {"mlstm": _chunkwise}),
    Implementation(
        "reference-compiled",
        {op: compiled.builder(op) for op in (*KERNEL_OPS, *glue.OPTIONS)} | {"lm": compiled.language_model},
        ("cpu",),
        missing=compiled.without_compiler,
        refuses=compiled.too_long,
    ),
)
