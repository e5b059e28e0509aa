"""The plain PyTorch reference under torch.compile: what a compiler makes of the formulas without a kernel."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from unittest.mock import patch

import torch

from xlstm_cuda import functional, reference

from . import models
from .calls import Builder, Call
from .glue import OPTIONS
from .ops import OPS, Outputs, Shape, Tensors

# loops over tokens or chunks are unrolled: longer ones compile for more than a minute on two cores, a model for more
# than two
MAX_TOKENS, MAX_MLSTM_TOKENS, MAX_MODEL_TOKENS = 8, 1024, 1536


def builder(op: str) -> Builder:
    """Compiles the op's reference for the shapes of the tensors before it returns the Call."""
    function = OPS[op].oracle  # of the mlstm the chunkwise form

    return lambda t: _compiled(function, t, t)


def language_model(t: Tensors) -> Call:
    """The library's model on its reference, whose mLSTM goes chunk by chunk."""
    model = models.with_parameters(models.lm(models.lm_shape(t)), t)

    def function(t: Tensors) -> Outputs:
        with functional.backend("reference"):
            return (model(t["ids"]),)

    with patch.object(reference, "mlstm", reference.mlstm_chunkwise):
        call = _compiled(function, t, models.leaves_of(model))

    def run() -> Outputs:
        with patch.object(reference, "mlstm", reference.mlstm_chunkwise):  # compiled code asks what is called now
            return call.run()

    return Call(run, call.leaves)


def _compiled(function: Callable[[Tensors], Outputs], t: Tensors, leaves: Tensors) -> Call:
    compiled = torch.compile(function, fullgraph=True, dynamic=False)
    call = Call(lambda: compiled(t), leaves)
    _call_once(call)
    return call


def _call_once(call: Call) -> None:
    """With the gradients where they are wanted, in the grad mode that calls are timed in."""
    leaves = tuple(call.leaves.values())
    wanted = any(x.requires_grad for x in leaves)
    with torch.set_grad_enabled(wanted):
        h = call.run()[0]
        if wanted:
            torch.autograd.grad(h, leaves, torch.ones_like(h))


def without_compiler() -> str | None:
    compiler = os.environ.get("CXX", "g++")  # as torch.compile chooses it
    return None if shutil.which(compiler) else f"needs a C++ compiler at run time, and there is no {compiler}"


def too_long(op: str, shape: Shape) -> str | None:
    if op in OPTIONS:
        return None
    if op == "lm" and shape["N"] == 0:
        tokens = shape["M"] * shape["S"]
        return None if tokens <= MAX_MODEL_TOKENS else f"unrolls its loops: M S > {MAX_MODEL_TOKENS} takes minutes"
    limit = MAX_MLSTM_TOKENS if op == "mlstm" else MAX_TOKENS
    return None if shape.get("S", 1) <= limit else f"unrolls its loop: S > {limit} takes a minute or more to compile"
