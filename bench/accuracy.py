"""Errors of the recurrent kernels in 16 bits over a long sequence, without a device: `python -m bench accuracy`.

The scans of a GPU take approximate functions for 16-bit data (csrc/cuda/recurrent/cell_math.h). Their PTX runs on the
host executor, once with these functions exact and once as wrong as the ISA allows them to be (docs/simt.md: the
adversary). Both are compared with the same call in float64 on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xlstm_cuda import _ops
from xlstm_cuda.functional import lstm, slstm
from xlstm_cuda.testing import lstm_inputs, slstm_inputs

BACKEND = "ptx"
BATCH, DIM = 2, 32
CELLS: dict[str, tuple[Callable[..., Any], Callable[..., dict[str, Any]]]] = {
    "sLSTM": (slstm, slstm_inputs),
    "sLSTM, exp forget gate": (partial(slstm, forget_gate="exp"), slstm_inputs),
    "LSTM": (lstm, lstm_inputs),
}
RESULTS = ("h", "dx", "dR")


class Row(NamedTuple):
    """Root of the mean square of the errors, over that of the values: of h, dx, dR."""

    cell: str
    dtype: torch.dtype
    exact: tuple[float, ...]  # the functions of the cell
    approximate: tuple[float, ...]


def rows(seqlen: int) -> Iterator[Row]:
    for cell, (function, draw) in CELLS.items():
        for dtype in (torch.bfloat16, torch.float16):
            inputs = draw(BATCH, seqlen, 1, DIM, dtype=dtype)
            expected = results(function, {name: x.double() for name, x in inputs.items()}, "cpu")
            exact, approximate = (errors(as_approximate(function, inputs, wrong), expected) for wrong in (False, True))
            yield Row(cell, dtype, exact, approximate)


def as_approximate(function: Callable[..., Any], inputs: dict[str, Tensor], wrong: bool) -> list[Tensor]:
    """wrong: approximate functions have the errors that they may have; else they are exact."""
    ops = _ops.library(_ops.PTX_NAMESPACE)
    ops.simt_set("adversary", "1" if wrong else "0")
    try:
        return results(function, inputs, BACKEND)
    finally:
        ops.simt_set("defaults", "")


def results(function: Callable[..., Any], inputs: dict[str, Tensor], backend: str) -> list[Tensor]:
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    h = function(**leaves, backend=backend)
    weights = torch.randn(h.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    h.backward(weights.to(h.dtype))
    return [h.detach(), *(x.grad for x in (leaves["x"], leaves["R"]) if x.grad is not None)]


def errors(actual: list[Tensor], expected: list[Tensor]) -> tuple[float, ...]:
    return tuple(rms(a.double() - e) / rms(e) for a, e in zip(actual, expected, strict=True))


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def table(seqlen: int) -> str:
    """Markdown."""
    lines = [
        f"| {seqlen} tokens, relative error (RMS) | " + " | ".join(f"{r}, exact | {r}, worst" for r in RESULTS) + " |",
        "| --- " + "| ---: " * 2 * len(RESULTS) + "|",
    ]
    for row in rows(seqlen):
        cells = [f"{x:.2e}" for pair in zip(row.exact, row.approximate, strict=True) for x in pair]
        lines.append(f"| {row.cell}, {str(row.dtype).removeprefix('torch.')} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
