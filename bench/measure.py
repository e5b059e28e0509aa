"""Times: implementations in turn within one run; and the machine's ceilings, measured the same way."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

WARM_UP_SECONDS, SAMPLE_SECONDS = 0.1, 0.01
GEMM_SIZE, COPY_MEGABYTES = 1024, 256  # of the ceilings
GPU_SCALE = 4  # times those: a GPU is faster, and its L2 holds more than a tenth of COPY_MEGABYTES


@dataclass(frozen=True)
class Timing:
    median: float  # seconds per call
    p10: float
    p90: float
    samples: int
    calls_per_sample: int


def quantile(values: Sequence[float], q: float) -> float:
    """Linear interpolation between the sorted values, 0 <= q <= 1. Raises ValueError where there is none."""
    if not values:
        raise ValueError("quantile of no values")
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def interleaved(
    calls: Mapping[str, Callable[[], object]], device: str, repeats: int, max_seconds: float = 30.0
) -> dict[str, Timing]:
    """Times of each call, by name. Every round takes one sample of each, and another one comes first.

    A sample is the mean of as many calls as last about SAMPLE_SECONDS. Stops after `repeats` rounds, or after
    max_seconds if there are three by then.
    """
    counts = {name: _warm_up(call, device) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order, start = list(calls), time.perf_counter()
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for done in range(repeats):
            if done >= 3 and time.perf_counter() - start > max_seconds:
                break
            for name in order:
                samples[name].append(_seconds(calls[name], counts[name], device))
            order = [*order[1:], *order[:1]]
    finally:
        if collecting:
            gc.enable()
    return {
        name: Timing(quantile(values, 0.5), quantile(values, 0.1), quantile(values, 0.9), len(values), counts[name])
        for name, values in samples.items()
    }


def fastest(calls: Mapping[str, Callable[[], object]], device: str, rounds: int = 4) -> str:
    """The name of the call whose shortest time in a few turns is the least."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        best |= {name: min(best[name], _seconds(call, 1, device)) for name, call in calls.items()}
    return min(best, key=best.__getitem__)


def _warm_up(call: Callable[[], object], device: str) -> int:
    """Calls until times have settled; the number of calls of a sample."""
    fastest, start, calls = float("inf"), time.perf_counter(), 0
    while calls < 2 or time.perf_counter() - start < WARM_UP_SECONDS:
        fastest = min(fastest, _seconds(call, 1, device))
        calls += 1
    return max(1, round(SAMPLE_SECONDS / max(fastest, 1e-7)))


def _seconds(call: Callable[[], object], count: int, device: str) -> float:
    """Mean time of `count` calls; on a GPU that between an event before and one after them."""
    if device == "cuda":
        return _gpu_seconds(call, count)
    begin = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - begin) / count


def _gpu_seconds(call: Callable[[], object], count: int) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return 1e-3 * begin.elapsed_time(end) / count


def ceilings(dtype: torch.dtype, device: str) -> dict[str, float]:
    """GFLOP/s of torch.mm on square matrices in `dtype`, GB/s of a copy (read plus written) beyond most caches.

    On a CPU the arithmetic of 16-bit data is float32, and so is the ceiling.
    """
    if device == "cpu" and dtype.itemsize < 4:
        dtype = torch.float32
    scale = GPU_SCALE if device == "cuda" else 1
    size = scale * GEMM_SIZE
    a, b = torch.ones(2, size, size, dtype=dtype, device=device)
    source = torch.ones(scale * COPY_MEGABYTES * 2**18, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    calls = {"gemm": lambda: torch.mm(a, b), "copy": lambda: target.copy_(source)}
    times = interleaved(calls, device, repeats=7)
    return {
        "gemm_gflops": 2e-9 * size**3 / times["gemm"].median,
        "copy_gbs": 2e-9 * source.nbytes / times["copy"].median,
    }
