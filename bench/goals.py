"""What the library is meant to reach on a CPU, and whether result files show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .cases import Case, parse_shape
from .files import title

Entry = dict[str, Any]

TIME, MEMORY, COPY = "time", "peak memory", "% copy"
KEYS = {TIME: "median", MEMORY: "peak_bytes", COPY: "copy_percent"}  # of an entry


@dataclass(frozen=True)
class Goal:
    case: Case
    figure: str  # TIME and MEMORY: that of `over` divided by that of `impl`; COPY: that of `impl`
    over: str | None
    least: float
    impl: str = "cpu"

    @property
    def label(self) -> str:
        return f"{self.case.label}: {self.figure}, {self.impl}{f' over {self.over}' if self.over else ''}"

    def measured(self, results: dict[str, Any]) -> float | None:
        """None where a file does not have it."""
        entries = _entries(self.case, results)
        ours = entries.get(self.impl, {}).get(KEYS[self.figure])
        if self.over is None or ours is None:
            return ours
        theirs = entries.get(self.over, {}).get(KEYS[self.figure])
        return theirs / ours if theirs is not None and ours > 0 else None


def _entries(case: Case, results: dict[str, Any]) -> dict[str, Entry]:
    """By implementation; timed without a check they count for nothing."""
    matching = (record for record in results["cases"] if title(record) == case.label)
    return {entry["impl"]: entry for record in matching for entry in record["results"] if "check" in entry}


def table(named: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """A line per goal: what it asks for, and for each (name, results) what was measured and whether that is enough."""
    rows = [["goal", "at least", *(name for name, _ in named)]]
    for goal in GOALS:
        verdicts = [_verdict(goal.measured(results), goal.least) for _, results in named]
        rows.append([goal.label, f"{goal.least:g}", *verdicts])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in padded)


def _verdict(measured: float | None, least: float) -> str:
    if measured is None:
        return "not measured"
    return f"{measured:.2f} {'met' if measured >= least else 'missed'}"


def _goal(
    over: str | None, op: str, shape: str, mode: str, least: float, figure: str = TIME, impl: str = "cpu"
) -> Goal:
    return Goal(Case(op, parse_shape(op, shape), mode), figure, over, least, impl)


def _sequences(over: str, op: str, shape: str, fwd: float, fwdbwd: float) -> list[Goal]:
    return [_goal(over, op, shape, "fwd", fwd), _goal(over, op, shape, "fwdbwd", fwdbwd)]


_STEP_SHAPES = ("B=1,H=4,Dqk=64,Dv=64", "B=1,H=8,Dqk=256,Dv=512", "B=64,H=8,Dqk=256,Dv=512")
_STEP_IMPLS = ("cpu", "inplace")
_WIDE, _NARROW = "B=1,H=8,S=1024,Dqk=128,Dv=256", "B=1,H=4,S=1024,Dqk=64,Dv=64"

GOALS: list[Goal] = [
    *_sequences("xlstm", "slstm", "B=16,S=256,H=4,D=64", fwd=25, fwdbwd=20),
    *_sequences("xlstm", "slstm", "B=1,S=256,H=4,D=64", fwd=25, fwdbwd=15),
    *_sequences("xlstm", "slstm", "B=8,S=200,H=3,D=64", fwd=20, fwdbwd=15),
    *_sequences("torch.nn.LSTM", "lstm", "B=1,S=512,H=1,D=256", fwd=1.1, fwdbwd=1.3),
    *_sequences("torch.nn.LSTM", "lstm", "B=16,S=512,H=1,D=256", fwd=0.93, fwdbwd=1.1),
    _goal("mlstm_kernels", "mlstm", _WIDE, "fwdbwd", 2),
    _goal("mlstm_kernels", "mlstm", _NARROW, "fwdbwd", 4),
    *(_goal("mlstm_kernels", "mlstm", shape, "fwdbwd", 4, MEMORY) for shape in (_WIDE, _NARROW)),
    *(_goal("reference", "mlstm_step", s, "step", 8, impl=impl) for s in _STEP_SHAPES for impl in _STEP_IMPLS),
    *(_goal(None, "mlstm_step", _STEP_SHAPES[-1], "step", 60, COPY, impl) for impl in _STEP_IMPLS),
]
