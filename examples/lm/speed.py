"""A small table: the library's functions against the same thing in PyTorch, measured here and now."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import xlstm_cuda
from xlstm_cuda.reference import mlstm_chunkwise

Outputs = Sequence[Tensor]
Forward = Callable[[], Any]  # returns a tensor


@dataclass(frozen=True)
class Case:
    name: str
    shape: str
    ours: Callable[[], Outputs]
    theirs: Callable[[], Outputs]
    against: str


def cases(device: str) -> list[Case]:
    """Small training and decoding shapes in float32, the same inputs on both sides."""
    generator = torch.Generator(device).manual_seed(0)

    def randn(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=generator, device=device)).requires_grad_()

    B, H, S, D = 2, 4, 128, 64
    qkv = [randn(B, H, S, D) for _ in range(3)]
    gates = [randn(B, H, S), (randn(B, H, S) + 3).detach().requires_grad_()]
    x, R, b = randn(B, S, 4, H, D), randn(4, H, D, D, scale=D**-0.5), randn(4, H, D)
    prefix: Any = xlstm_cuda.mlstm(*(t.detach() for t in qkv + gates), return_state=True)
    q, k, v, i, f = (t[:, :, 0].detach() for t in qkv + gates)
    torch_lstm = nn.LSTM(H * D, H * D, batch_first=True, device=device)
    W_in, W_rec, b_in, b_rec = torch_lstm.parameters()
    sequence = randn(B, S, H * D)

    def gradients(forward: Forward, inputs: list[Tensor]) -> Callable[[], Outputs]:
        return lambda: torch.autograd.grad(forward().sum(), inputs)

    def mlstm(backend: str | None) -> Forward:
        return lambda: xlstm_cuda.mlstm(*qkv, *gates, backend=backend)

    def slstm(backend: str | None) -> Forward:
        return lambda: xlstm_cuda.slstm(x, R, b, backend=backend)

    def lstm() -> Tensor:
        inputs = F.linear(sequence, W_in, b_in + b_rec).view(B, S, 4, 1, H * D)
        h: Any = xlstm_cuda.lstm(inputs, W_rec.view(4, 1, H * D, H * D))
        return h.squeeze(2)

    def step(backend: str | None) -> Callable[[], Outputs]:
        return lambda: [xlstm_cuda.mlstm_step(q, k, v, i, f, prefix[1], backend=backend)[0]]

    def pair(name: str, shape: str, inputs: list[Tensor], ours: Forward, theirs: Forward, against: str) -> list[Case]:
        return [
            Case(name, shape, lambda: [ours()], lambda: [theirs()], against),
            Case(f"{name} + backward", shape, gradients(ours, inputs), gradients(theirs, inputs), against),
        ]

    sizes, by_token = f"B{B} S{S} H{H} D{D}", 'backend="reference", token by token'
    return [
        *pair("mlstm", sizes, qkv + gates, mlstm(None), mlstm("reference"), by_token),
        *pair(
            "mlstm", sizes, qkv + gates, mlstm(None), lambda: mlstm_chunkwise(*qkv, *gates), "reference.mlstm_chunkwise"
        ),
        *pair("slstm", sizes, [x, R, b], slstm(None), slstm("reference"), by_token),
        *pair(
            "lstm",
            f"B{B} S{S} H1 D{H * D}",
            [sequence, *torch_lstm.parameters()],
            lstm,
            lambda: torch_lstm(sequence)[0],
            "torch.nn.LSTM",
        ),
        Case("mlstm_step", f"B{B} H{H} D{D}", step(None), step("reference"), by_token),
    ]


def disagreement(case: Case) -> float:
    """Largest difference of any output relative to that output's largest value."""
    pairs = zip(case.ours(), case.theirs(), strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


def median_times(case: Case, device: str, seconds: float = 0.5) -> tuple[float, float]:
    """Median time of a call of ours and theirs, in seconds, the two measured in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    while len(times[0]) < 3 or time.perf_counter() - start < seconds:
        for call, record in zip((case.ours, case.theirs), times, strict=True):
            begin = time.perf_counter()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            record.append(time.perf_counter() - begin)
    return statistics.median(times[0]), statistics.median(times[1])


def print_speed(device: str) -> None:
    """Print one row per case; a case whose two sides disagree is not timed."""
    threads = f", {torch.get_num_threads()} threads" if device == "cpu" else ""
    print(f"\nspeed on {device}{threads}, float32, median milliseconds of a call ('+ backward' includes the forward):")
    print(f"{'':20}{'':18}{'ours':>10}{'PyTorch':>12}{'ratio':>9}   PyTorch version")
    for case in cases(device):
        label = f"{case.name:20}{case.shape:18}"
        difference = disagreement(case)  # also the warm-up
        if not difference < 1e-3:
            print(f"{label}not timed: differs from {case.against} by {difference:.1e}")
            continue
        ours, theirs = median_times(case, device)
        print(f"{label}{ours * 1e3:10.3f}{theirs * 1e3:12.3f}{theirs / ours:8.1f}x   {case.against}")
