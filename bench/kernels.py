"""Device time of every kernel of a call, by torch.profiler: `python -m bench kernels`, on a GPU.

Where a call's time goes, and what each way to run it takes: to cut a recurrent scan (csrc/cuda/recurrent/plan.h), or to
walk through an mLSTM (csrc/cuda/mlstm_chunkwise/plan.h). The results are not checked here: `bench run` does that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile

from .cases import DTYPES, SUITES, Case
from .check import copies, runner
from .implementations import IMPLEMENTATIONS
from .ops import OPS

Times = dict[str, float]  # microseconds by the kernel's name
WARM, CALLS = 2, 4
LEAST = 0.5  # microseconds of a kernel that is shown

# Ways of the scan of a few heads to be compared, by the units of a head. teams=2 has whole tiles of 8 of the 16 rows.
WAYS = {
    64: ("block teams=2", "block teams=8"),
    128: ("block teams=2", "cluster units=64 teams=2", "cluster units=64 teams=8", "cluster units=32 teams=2"),
    256: ("cluster units=64 teams=2", "cluster units=32 teams=2", "grid units=64 teams=2", "grid units=16 teams=2"),
    768: ("grid units=16 teams=1", "grid units=16 teams=2", "launch"),
}
MLSTM_WAYS = ("", "passes", "passes mma")


def cases() -> Iterator[tuple[Case, str, str]]:
    """With the implementation, and the way that it is asked to take; "": its own."""
    for case in SUITES["cuda"]:
        for impl in ("cuda-inplace", "cuda-inplace-bf16") if case.op == "mlstm_step" else ("cuda",):
            if impl in case.impls:
                yield case, impl, ""
    for case in SUITES["cuda-mlstm"]:
        if case.mode == "fwdbwd":
            yield from ((case, "cuda", way) for way in MLSTM_WAYS)
    for case in SUITES["cuda-recurrent"]:
        yield case, "cuda", ""
        if case.op == "slstm" and case.mode == "fwd":
            for way in WAYS[case.shape["D"]]:
                yield Case(case.op, case.shape, "fwdbwd", case.dtype, case.device), "cuda", way


def short(name: str) -> str:
    """Of a kernel: without namespaces, template arguments and parameters."""
    name = re.sub(r"\(anonymous namespace\)|<unnamed>", "", name.removeprefix("void "))
    return re.split(r"[<(]", name, maxsplit=1)[0].split("::")[-1]


def times_of(call: Callable[[], object]) -> Times:
    """Mean of CALLS calls after WARM others."""
    for _ in range(WARM):
        call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize()
    times: Times = {}
    for event in profiled.key_averages():
        name = short(event.key)
        times[name] = times.get(name, 0.0) + event.device_time_total / CALLS
    return {name: round(time, 1) for name, time in times.items() if time >= LEAST}


@contextmanager
def taking(op: str, way: str) -> Iterator[None]:
    ask = torch.ops.xlstm_cuda.mlstm_variant if op == "mlstm" else torch.ops.xlstm_cuda.recurrent_variant
    ask(way)
    try:
        yield
    finally:
        ask("")


def measure(case: Case, impl: str, way: str) -> Times:
    tensors = OPS[case.op].draw(case.shape, DTYPES[case.dtype], case.device)
    call = IMPLEMENTATIONS[impl].builders[case.op](copies(tensors, case.mode))
    with taking(case.op, way):
        return times_of(runner(call, case.mode))


def run() -> dict[str, Times]:
    """By case and way; prints a line for each."""
    found: dict[str, Times] = {}
    for case, impl, way in cases():
        name = ", ".join(filter(None, (f"{case.label}, {impl}", way)))
        found[name] = measure(case, impl, way)
        print(f"{name}: {', '.join(f'{kernel} {time:g} us' for kernel, time in found[name].items())}", flush=True)
    return found
