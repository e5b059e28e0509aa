"""Predicted times of the CUDA kernels on an H200: `python -m bench predict`. A model.

A device took 1.1 to 2 times as long (docs/h200.md).

Small cases run as PTX on the host executor: one head with so many chunks, and twice as many. What the second one has
more is the work of a chunk, and the work of a long sequence follows. Two kinds of limits are printed for each kernel:

- its time by the model of tools/sass (bench/machine_code.py): what its warps take, with as many blocks on each
  multiprocessor as its launch bounds promise, and no other traffic;
- the time in which each resource could do the work, if nothing else were in the way.

A kernel is predicted to take the longest of them, and a call the sum of its kernels. Launches cost nothing here.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from tools.sass.model import PIPES, pipe_of
from xlstm_cuda import _ops

from .cases import TOKENS
from .counters import counted, mlstm_of
from .machine_code import SCHEDULERS, Seen, hot_turns, modelled, seen_in
from .ours import CUDA_CHUNK_SIZES

# Of an H200: clock and memory by what its makers say and by what streaming kernels reach of it, the L2 by
# microbenchmarks of an H100. Not measured here.
MULTIPROCESSORS, CLOCK = 132, 1.85e9
L2_BYTES, HBM_BYTES = 5.5e12, 4.3e12  # a second
SECTOR = 32
SHARED = ("ld.shared", "st.shared", "ldmatrix", "stmatrix")  # a multiprocessor has a wavefront of 128 bytes in a cycle
HEADS = ((64, (64, 64)), (16, (128, 256)), (8, (256, 512)))  # with their Dqk and Dv: 4096 hidden units
GATE_TILE = 4096  # tokens that a block of the gate kernels goes through at a time
WALK_TILES = ("mlstm gates", "mlstm gate_grads")
STATES = ("mlstm states", "mlstm states wgmma")
SHARED_BYTES = 227 << 10  # that a block may have

# Of the launches of one name. "blocks"; "slots": cycles of multiprocessors by the model; "chain": cycles from the first
# to the last instruction of a block, added up over launches; "shared" wavefronts; sectors of "L2", and of "HBM", those
# that a launch touches at all; and cycles of a scheduler by pipe.
Work = Counter[str]
Files = dict[str, Path]  # machine_code.sources()


def work_of(counts: dict[str, Any], files: Files) -> Work:
    """Of a kernel in a call. counts: what counters.counted gives of it."""
    work: Work = Counter()
    for seen in seen_in({"": counts}, files):
        blocks = seen.warps / seen.warps_of_block
        cycles = cycles_of_block(seen)
        work += Counter(blocks=blocks, slots=blocks * cycles / seen.blocks, chain=seen.launches * cycles)
        work += pipes_of(seen)
    if not any("wgmma" in instance for instance in counts["instances"]):  # whose sizes only the machine code has
        work["tensor"] = counts["instructions"].get("tensor", 0) * PIPES["HMMA"][1]  # exactly, from the PTX
    traffic = counts["traffic"]
    work["shared"] = sum(traffic[kind]["wavefronts"] for kind in SHARED if kind in traffic)
    work["shared"] += sum(traffic[kind]["bytes"] / 128 for kind in ("cp.async", "tma") if kind in traffic)
    work["L2"] = sum(cost["sectors"] for cost in traffic.values())
    work["HBM"] = counts["touched_sectors"]
    return work


def pipes_of(seen: Seen) -> Counter[str]:
    """Cycles of a scheduler that all warps take, by pipe."""
    pipes: Counter[str] = Counter()
    for n, block in enumerate(seen.code.blocks):
        for instruction in seen.code.kernel.instructions[block.first : block.last]:
            pipe, cycles = pipe_of(instruction)
            pipes["issue"] += seen.code.weights[n]
            if pipe != "issue":
                pipes[pipe] += seen.code.weights[n] * cycles
    return pipes


def cycles_of_block(seen: Seen) -> float:
    """From the first instruction of a warp to its last, all warps of a multiprocessor being alike. Of loops that matter
    by the model; of all the rest what stalls and issue take at least."""
    cycles, known = 0.0, set[int]()
    for turn in sorted(hot_turns(seen), key=lambda turn: -len(turn.loop.blocks)):
        if turn.loop.header in known or (of_turn := modelled(seen, turn)) is None:
            continue
        cycles += turn.turns / seen.warps * of_turn
        known |= turn.loop.blocks
    stalls = issued = 0.0
    for n, block in enumerate(seen.code.blocks):
        if n in known:
            continue
        rest = seen.code.kernel.instructions[block.first : block.last]
        share = seen.code.weights[n] / seen.warps
        stalls += share * sum(instruction.control.stall for instruction in rest)
        issued += share * len(rest)
    return cycles + max(stalls, issued * seen.per_scheduler)


def grown(name: str, two: Work, four: Work, chunk_size: int, seqlen: int, rows: int, segments: int = 1) -> Work:
    """What `rows` heads with so many tokens take, from what one head of two chunks and of four takes. segments: of a
    walk."""
    chunks = seqlen / chunk_size
    work = Counter({kind: (two[kind] + (four[kind] - two[kind]) / 2 * (chunks - 2)) * rows for kind in four})
    if name in WALK_TILES:  # the small cases are a part of a tile
        work = Counter({kind: four[kind] / 4 * chunks * rows for kind in four})
        work["chain"] = four["chain"] * -(-seqlen // GATE_TILE)
        work["slots"] = work["chain"] * rows
    elif two["blocks"] == four["blocks"]:
        # a block walks through all chunks, or through a segment, and nearly all twice
        work = Counter({kind: n * (2 - 1 / segments) for kind, n in work.items()})
        work["chain"] *= 1 / rows if segments == 1 else 2 / (2 * segments - 1) / rows
    else:
        work["chain"] = four["chain"]
    return work


def segments_of(heads: int, dims: tuple[int, int], chunk_size: int, seqlen: int) -> dict[str, int]:
    """Into how many each kernel cuts sequences, by the plan for an H200."""
    shape = TOKENS // seqlen, heads, seqlen, *dims, 0
    device = True, MULTIPROCESSORS, SHARED_BYTES
    ops = _ops.library(_ops.PTX_NAMESPACE)
    lines = ops.mlstm_plan(*shape, "bf16", chunk_size, "q k v h dh", *device).splitlines()
    plan = {name: int(rest[-1]) for name, *rest in map(str.split, lines) if rest[-1].isdigit()}
    return {"mlstm walk": plan.get("walk", 1)} | dict.fromkeys(STATES, plan["state_grads"])


def times_of(work: Work) -> dict[str, float]:
    """Seconds by what limits a kernel."""
    times = {"model": max(work["slots"] / MULTIPROCESSORS, work["chain"]) / CLOCK}
    for pipe in ("issue", "tensor", "special"):
        times[pipe] = work[pipe] / (MULTIPROCESSORS * SCHEDULERS * CLOCK)
    times["shared"] = work["shared"] / (MULTIPROCESSORS * CLOCK)
    return times | {"L2": SECTOR * work["L2"] / L2_BYTES, "HBM": SECTOR * work["HBM"] / HBM_BYTES}


Times = dict[str, dict[str, float]]  # of each kernel, by what limits it


def mlstm_times(heads: int, dims: tuple[int, int], chunk_size: int, seqlen: int, backward: bool, files: Files) -> Times:
    """Of each kernel, for TOKENS of so many heads in sequences of this length."""
    two, four = (
        {name: work_of(counts, files) for name, counts in counted(run).items()}
        for run in (mlstm_of(*dims, n * chunk_size, chunk_size, backward) for n in (2, 4))
    )
    rows = heads * TOKENS // seqlen
    segments = segments_of(heads, dims, chunk_size, seqlen)
    return {
        name: times_of(grown(name, two[name], four[name], chunk_size, seqlen, rows, segments.get(name, 1)))
        for name in four
    }


def total(kernels: Times) -> float:
    """Seconds, if each kernel takes as long as what limits it most, one kernel after the other."""
    return sum(max(times.values()) for times in kernels.values())


def report(title: str, kernels: Times) -> str:
    """A table of the kernels in milliseconds, in Markdown."""
    kinds = list(next(iter(kernels.values())))
    lines = [
        f"{title}: {1e3 * total(kernels):.2f} ms (model)",
        "",
        f"| kernel | {' | '.join(kinds)} |",
        f"| --- | {'---: | ' * len(kinds)}".rstrip(),
    ]
    for name, times in kernels.items():
        lines.append(f"| {name} | {' | '.join(f'{1e3 * times[kind]:.3f}' for kind in kinds)} |")
    return "\n".join(lines) + "\n"


def sweep(heads: int, dims: tuple[int, int], seqlen: int, files: Files, kernels: bool) -> str:
    """The milliseconds forward, and forward and backward, by chunk size; kernels: after the tables of their kernels."""
    tables, row = [], []
    for size in CUDA_CHUNK_SIZES:
        both = [mlstm_times(heads, dims, size, seqlen, backward, files) for backward in (False, True)]
        row.append(" / ".join(f"{1e3 * total(times):.2f}" for times in both))
        for mode, times in zip(("forward", "forward and backward"), both, strict=True):
            tables.append(report(f"{dims} x {heads}, S = {seqlen}, chunks of {size}, {mode}", times))
    summary = f"| {dims} x {heads}, S = {seqlen} | {' | '.join(row)} |\n"
    return "\n".join([*tables, summary]) if kernels else summary


def head() -> str:
    sizes = " | ".join(f"chunks of {size}" for size in CUDA_CHUNK_SIZES)
    return f"| (Dqk, Dv) x heads, {TOKENS} tokens, ms (model) | {sizes} |\n| --- {'| ---: ' * len(CUDA_CHUNK_SIZES)}|\n"


def scans(table: dict[str, dict[str, Any]]) -> str:
    """Microseconds of a step of the recurrent scans, from bench/machine_code.json. In Markdown."""
    lines = ["| scan, bfloat16, one batch tile | forward, us (model) | backward |", "| --- | ---: | ---: |"]
    for case in table:
        forward, backward = (step_cycles(table, case, direction) for direction in ("fwd", "bwd"))
        if forward and backward:
            lines.append(f"| {case} | {1e6 * forward / CLOCK:.2f} | {1e6 * backward / CLOCK:.2f} |")
    return "\n".join(lines) + "\n"


def step_cycles(table: dict[str, dict[str, Any]], case: str, direction: str) -> float | None:
    """Of the loop over tokens, by the model; direction: fwd or bwd."""
    for name, kernel in table[case].items():
        if f"resident_{direction}" in name:
            return next((loop["model cycles"] for loop in kernel["loops"] if "tensor" in loop["classes"]), None)
    return None
