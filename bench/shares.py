"""Where the time of a call goes, by kind of work, as torch's profiler sees it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

# Parts of the names of ops, and what they are; the first that fits counts.
KINDS = (
    ("xlstm_cuda::mlstm", "mLSTM"),
    ("xlstm_cuda::recurrent", "sLSTM and LSTM"),
    ("xlstm_cuda::", "glue: convolution, block maps, norms, gates"),
    ("scaled_dot_product|flash_attention", "attention"),
    ("mm|addmv|linear|matmul|_dot", "matrix products"),
    ("copy_|cat|clone|contiguous|fill_|zero_|_to_copy", "copies"),
    ("embedding|index|gather|argmax|nonzero", "lookups"),
)
ELEMENTWISE = "elementwise, sums and the rest"


def kind_of(op: str) -> str:
    """ "matrix products" of "aten::addmm"."""
    return next((kind for parts, kind in KINDS if any(part in op for part in parts.split("|"))), ELEMENTWISE)


def shares(call: Callable[[], object], device: str, calls: int = 5) -> dict[str, tuple[float, float]]:
    """Per kind: the share of the time, and how often its ops are called in one call; largest share first.

    The time is what ops spend outside the ops that they call: on a GPU that of its kernels.
    """
    call()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiler:
        for _ in range(calls):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
    times: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for event in profiler.key_averages():
        time = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        if time > 0 and "::" in event.key:
            times[kind_of(event.key)] += time
            counts[kind_of(event.key)] += event.count
    total = sum(times.values())
    return {kind: (time / total, counts[kind] / calls) for kind, time in times.most_common()}


def markdown(found: dict[str, dict[str, tuple[float, float]]]) -> str:
    """A row for each kind, and two columns for each implementation: % of its time, and ops in a call."""
    kinds = dict.fromkeys(kind for parts in found.values() for kind in parts)
    head = ["part", *(f"{name}: {what}" for name in found for what in ("% of its time", "ops"))]
    lines = [head, ["---"] * len(head)]
    for kind in kinds:
        cells = [parts.get(kind, (0.0, 0.0)) for parts in found.values()]
        lines.append([kind, *(cell for share, ops in cells for cell in (f"{100 * share:.0f}", f"{ops:.0f}"))])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
