"""What the library is meant to reach on a CPU and on a GPU, and whether result files show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .cases import Case, parse_shape
from .files import title

Entry = dict[str, Any]

TIME, MEMORY, COPY, MICROSECONDS, MILLISECONDS = "time", "peak memory", "% copy", "microseconds", "milliseconds"
LATENCIES = {MICROSECONDS: 1e6, MILLISECONDS: 1e3}  # a second has so many
KEYS = {TIME: "median", MEMORY: "peak_bytes", COPY: "copy_percent", **dict.fromkeys(LATENCIES, "median")}  # of an entry
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Goal:
    case: Case
    figure: str  # TIME and MEMORY: that of `over` divided by that of `impl`; COPY and LATENCIES: that of `impl`
    over: str | None
    bound: float  # what one of the LATENCIES has to be at most, any other figure at least
    impl: str = "cpu"

    @property
    def label(self) -> str:
        return f"{self.case.label}: {self.figure}, {self.impl}{f' over {self.over}' if self.over else ''}"

    def measured(self, results: dict[str, Any]) -> float | None:
        """None where a file does not have it."""
        entries = _entries(self.case, results)
        ours = entries.get(self.impl, {}).get(KEYS[self.figure])
        if ours is not None and self.figure in LATENCIES:
            return LATENCIES[self.figure] * float(ours)
        if self.over is None or ours is None:
            return ours
        theirs = entries.get(self.over, {}).get(KEYS[self.figure])
        return theirs / ours if theirs is not None and ours > 0 else None

    @property
    def wanted(self) -> str:
        return f"{'at most' if self.figure in LATENCIES else 'at least'} {self.bound:g}"

    def verdict(self, measured: float | None) -> str:
        if measured is None:
            return NOT_MEASURED
        return "met" if (measured <= self.bound if self.figure in LATENCIES else measured >= self.bound) else "missed"


def _entries(case: Case, results: dict[str, Any]) -> dict[str, Entry]:
    """By implementation; timed without a check they count for nothing. A peer may have failed its check."""
    matching = (record for record in results["cases"] if title(record) == case.label)
    return {entry["impl"]: entry for record in matching for entry in record["results"] if "check" in entry}


def table(device: str, named: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """A line per goal: what it asks for, and for each (name, results) what was measured and whether that is enough."""
    rows = [["goal", "wanted", *(name for name, _ in named)]]
    for goal in GOALS[device]:
        measured = (goal.measured(results) for _, results in named)
        rows.append([goal.label, goal.wanted, *(_cell(goal, figure) for figure in measured)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in padded)


def _cell(goal: Goal, measured: float | None) -> str:
    verdict = goal.verdict(measured)
    return verdict if measured is None else f"{measured:.2f} {verdict}"


def _goal(
    over: str | None, op: str, shape: str, mode: str, bound: float, figure: str = TIME, impl: str = "cpu"
) -> Goal:
    return Goal(Case(op, parse_shape(op, shape), mode), figure, over, bound, impl)


def _decoding(shape: str, bound: float, figure: str, impl: str) -> list[Goal]:
    """On a GPU, in float32 and bfloat16; a state in 16 bits goes with data in 16 bits."""
    dtypes = ("bfloat16",) if impl.endswith("-bf16") else ("float32", "bfloat16")
    cases = (Case("mlstm_step", parse_shape("mlstm_step", shape), "step", dtype, "cuda") for dtype in dtypes)
    return [Goal(case, figure, None, bound, impl) for case in cases]


def _sequences(over: str, op: str, shape: str, fwd: float, fwdbwd: float, impl: str = "cpu") -> list[Goal]:
    return [_goal(over, op, shape, mode, bound, impl=impl) for mode, bound in (("fwd", fwd), ("fwdbwd", fwdbwd))]


_STEP_SHAPES = ("B=1,H=4,Dqk=64,Dv=64", "B=1,H=8,Dqk=256,Dv=512", "B=64,H=8,Dqk=256,Dv=512")
_STEP_IMPLS = ("cpu", "inplace")
_WIDE, _NARROW = "B=1,H=8,S=1024,Dqk=128,Dv=256", "B=1,H=4,S=1024,Dqk=64,Dv=64"

_ONLY_MLSTM, _HALF_SLSTM = "B=8,S=256,D=256,M=6,N=0", "B=8,S=256,D=256,M=3,N=3"
_GENERATION = "B=1,S=16,T=64,D=512,L=6"

_CPU: list[Goal] = [
    *_sequences("xlstm", "slstm", "B=16,S=256,H=4,D=64", fwd=25, fwdbwd=20),
    *_sequences("xlstm", "slstm", "B=1,S=256,H=4,D=64", fwd=25, fwdbwd=15),
    *_sequences("xlstm", "slstm", "B=8,S=200,H=3,D=64", fwd=20, fwdbwd=15),
    *_sequences("torch.nn.LSTM", "lstm", "B=1,S=512,H=1,D=256", fwd=1.1, fwdbwd=1.3),
    *_sequences("torch.nn.LSTM", "lstm", "B=16,S=512,H=1,D=256", fwd=1.05, fwdbwd=1.15, impl="nn.LSTM"),
    _goal("mlstm_kernels", "mlstm", _WIDE, "fwdbwd", 2),
    _goal("mlstm_kernels", "mlstm", _NARROW, "fwdbwd", 5),
    *(_goal("mlstm_kernels", "mlstm", shape, "fwdbwd", 4, MEMORY) for shape in (_WIDE, _NARROW)),
    *(_goal("reference", "mlstm_step", s, "step", 8, impl=impl) for s in _STEP_SHAPES for impl in _STEP_IMPLS),
    *(_goal(None, "mlstm_step", _STEP_SHAPES[-1], "step", 60, COPY, impl) for impl in _STEP_IMPLS),
    *(_goal("xlstm", "lm", shape, "fwdbwd", bound) for shape, bound in ((_ONLY_MLSTM, 2.5), (_HALF_SLSTM, 6))),
    *(_goal("xlstm", "lm", shape, "fwdbwd", 2, MEMORY) for shape in (_ONLY_MLSTM, _HALF_SLSTM)),
    _goal("transformers", "large_generate", _GENERATION, "fwd", 2, impl="transformers-patched"),
    _goal(None, "large_generate", _GENERATION, "fwd", 80, COPY),
]


def _training(fwd: float, fwdbwd: float, over: str, ratio: float) -> list[Goal]:
    """65,536 tokens on a GPU, at most so many milliseconds and `ratio` times as fast as `over`."""
    shape = parse_shape("mlstm", "B=8,H=16,S=8192,Dqk=128,Dv=256")
    cases = [(Case("mlstm", shape, mode, "bfloat16", "cuda"), ms) for mode, ms in (("fwd", fwd), ("fwdbwd", fwdbwd))]
    return [
        *(Goal(case, MILLISECONDS, None, ms, "cuda") for case, ms in cases),
        *(Goal(case, TIME, over, ratio, "cuda") for case, _ in cases),
    ]


def _scans() -> list[Goal]:
    """16 rows of 1024 tokens on a GPU: microseconds a step, 5 % more than an H200 took (docs/h200.md),
    against flashrnn's fused kernel, against cuDNN."""
    steps, goals = 1024, []
    for D, H, microseconds in ((64, 12, 0.67), (128, 6, 0.96), (256, 3, 1.02), (768, 1, 1.97)):
        fwd, both = (
            Case("slstm", {"B": 16, "S": steps, "H": H, "D": D}, mode, "bfloat16", "cuda") for mode in ("fwd", "fwdbwd")
        )
        goals.append(Goal(fwd, MILLISECONDS, None, 1e-3 * steps * microseconds, "cuda"))
        goals += [Goal(case, TIME, "flashrnn", 3, "cuda") for case in ((fwd, both) if D <= 256 else (both,))]
    cudnn = Case("lstm", {"B": 16, "S": steps, "H": 1, "D": 768}, "fwd", "bfloat16", "cuda")
    return [*goals, Goal(cudnn, TIME, "torch.nn.LSTM", 5, "cuda")]


_CUDA: list[Goal] = [
    *(
        goal
        for impl in ("cuda-graph", "cuda-graph-bf16")
        for goal in _decoding("B=1,H=8,Dqk=256,Dv=512", 8, MICROSECONDS, impl)
    ),
    # states larger than the L2
    *(
        goal
        for rows in (64, 256)
        for impl in ("cuda-inplace", "cuda-inplace-bf16")
        for goal in _decoding(f"B={rows},H=8,Dqk=256,Dv=512", 80, COPY, impl)
    ),
    *_training(fwd=1.2, fwdbwd=5, over="mlstm_kernels-xl_chunk", ratio=2),
    *_scans(),
]

GOALS: dict[str, list[Goal]] = {"cpu": _CPU, "cuda": _CUDA}
