"""The plain PyTorch reference under torch.compile: what a compiler makes of the formulas without a kernel."""

from __future__ import annotations

import os
import shutil

import torch

from .calls import Builder, Call
from .ops import OPS, Shape, Tensors

# loops over tokens or chunks are unrolled: longer ones compile for more than a minute on two cores
MAX_TOKENS, MAX_MLSTM_TOKENS = 8, 1024


def builder(op: str) -> Builder:
    """Compiles the op's reference for the shapes of the tensors before it returns the Call."""
    function = OPS[op].oracle  # of the mlstm the chunkwise form

    def build(t: Tensors) -> Call:
        compiled = torch.compile(function, fullgraph=True, dynamic=False)
        call = Call(lambda: compiled(t), t)
        _call_once(call)
        return call

    return build


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
    limit = MAX_MLSTM_TOKENS if op == "mlstm" else MAX_TOKENS
    return None if shape.get("S", 1) <= limit else f"unrolls its loop: S > {limit} takes a minute or more to compile"
