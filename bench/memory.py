"""Peak memory of one call: how far the resident set of a fresh process grows above where it was before the call.

It counts everything, libraries' own workspaces included, which torch's allocator does not see. The child's malloc
returns every block above 64 KiB to the system, so that the call cannot reuse what came before it. Linux only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from .cases import DTYPES, Case
from .check import affordable, copies, runner
from .implementations import IMPLEMENTATIONS
from .ops import OPS

ROOT = Path(__file__).resolve().parents[1]


def peak_growth(call: Callable[[], object]) -> int | None:
    """Bytes that the peak resident set during the call exceeds the resident set before it; None if unknown."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before)
    except OSError:
        return None


def _status(key: str) -> int:
    """A size in /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def measured(case: Case, impl: str, note: str, threads: int) -> int | None:
    """Peak growth of one call in a child process, CUDA's allocator peak for cuda; None where it cannot be measured.

    note: which of the implementation's ways.
    """
    request = json.dumps({"case": asdict(case), "impl": impl, "note": note, "threads": threads})
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_TOP_PAD_": "0"}
    command = [sys.executable, "-m", "bench.memory", request]
    child = subprocess.run(command, env={**os.environ, **malloc}, cwd=ROOT, capture_output=True, text=True)
    if child.returncode != 0:  # out of memory, say: the times of this case and the other cases are worth keeping
        print(f"memory of {impl}: the child process failed:\n{child.stderr}", file=sys.stderr)
        return None
    value = json.loads(child.stdout.splitlines()[-1])
    return None if value is None else int(value)


def _in_child(request: str) -> int | None:
    fields = json.loads(request)
    torch.set_num_threads(fields["threads"])
    case, impl = Case(**fields["case"]), IMPLEMENTATIONS[fields["impl"]]
    op, builder = OPS[case.op], impl.ways(case.op, case.shape, case.mode)[fields["note"]]

    def call_at(shape: dict[str, int]) -> Callable[[], object]:
        return runner(builder(copies(op.draw(shape, DTYPES[case.dtype], case.device), case.mode)), case.mode)

    if case.device == "cuda":
        return allocator_growth(call_at(case.shape))
    small = {key: min(value, 8) if key in ("B", "S") else value for key, value in case.shape.items()}
    call_at(affordable(op, small, case.mode))()  # loads libraries, starts threads
    return peak_growth(call_at(case.shape))


def allocator_growth(call: Callable[[], object]) -> int:
    """Bytes that the peak of torch's CUDA allocator during the call exceeds what was allocated before it.

    After a call of the same shapes, which compiles, tunes and allocates what libraries keep.
    """
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


if __name__ == "__main__":
    print(json.dumps(_in_child(sys.argv[1])))
