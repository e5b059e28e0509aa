"""bench/goals.py: which goals result files show to be met."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench.cases import SUITES, parse_shape
from bench.goals import GOALS
from bench.implementations import IMPLEMENTATIONS
from tests.support.bench_runs import run

pytestmark = pytest.mark.usefixtures("quick")


# Goals


def goal_files(folder: Path, *contents: list[tuple[str, str, str, dict[str, dict[str, Any]]]]) -> list[Path]:
    """A result file per list of (op, shape, mode, what was measured by implementation)."""
    paths = []
    for index, cases in enumerate(contents):
        records = [
            {"op": op, "shape": parse_shape(op, shape), "mode": mode, "dtype": "float32", "device": "cpu"}
            | {"results": [{"impl": impl, "check": {}, **figures} for impl, figures in entries.items()]}
            for op, shape, mode, entries in cases
        ]
        paths.append(folder / f"file{index}.json")
        paths[-1].write_text(json.dumps({"format": 1, "cases": records}))
    return paths


def verdicts(paths: list[Path], capsys: pytest.CaptureFixture[str], device: str = "cpu") -> dict[str, list[str]]:
    """What the command prints: the columns after the goal, by goal."""
    status, printed = run(f"goals --device {device} {' '.join(map(str, paths))}", capsys)
    assert status == 0
    rows = [re.split(r" {2,}", line) for line in printed.splitlines()]
    assert rows[0] == ["goal", "wanted", *(path.name for path in paths)] and len(rows) == 1 + len(GOALS[device])
    return {goal: rest for goal, *rest in rows[1:]}


SLSTM, MLSTM = "B=16,S=256,H=4,D=64", "B=1,H=4,S=1024,Dqk=64,Dv=64"
LARGE_STEP = "B=64,H=8,Dqk=256,Dv=512"


def test_goals_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = goal_files(
        tmp_path,
        [
            ("slstm", SLSTM, "fwd", {"cpu": {"median": 2.0}, "xlstm": {"median": 50.0}}),
            ("slstm", SLSTM, "fwdbwd", {"cpu": {"median": 4.0}, "xlstm": {"median": 60.0}}),
            (
                *("mlstm", MLSTM, "fwdbwd"),
                {"cpu": {"median": 1.0, "peak_bytes": 10}, "mlstm_kernels": {"median": 3.5, "peak_bytes": 41}},
            ),
        ],
        [
            ("slstm", SLSTM, "fwd", {"cpu": {"median": 2.0}, "xlstm": {"median": 49.0}}),
            (
                *("mlstm_step", LARGE_STEP, "step"),
                {
                    "cpu": {"median": 1.0, "copy_percent": 59.0},
                    "inplace": {"median": 0.5, "copy_percent": 118.0},
                    "reference": {"median": 4.0},
                },
            ),
        ],
    )
    rows = verdicts(paths, capsys)
    slstm, mlstm, step = f"slstm {SLSTM} float32", f"mlstm {MLSTM} float32", f"mlstm_step {LARGE_STEP} float32 step"
    assert rows[f"{slstm} fwd: time, cpu over xlstm"] == ["at least 25", "25.00 met", "24.50 missed"]
    assert rows[f"{slstm} fwdbwd: time, cpu over xlstm"] == ["at least 20", "15.00 missed", "not measured"]
    assert rows[f"{mlstm} fwdbwd: time, cpu over mlstm_kernels"] == ["at least 5", "3.50 missed", "not measured"]
    assert rows[f"{mlstm} fwdbwd: peak memory, cpu over mlstm_kernels"] == ["at least 4", "4.10 met", "not measured"]
    assert rows[f"{step}: time, cpu over reference"] == ["at least 8", "not measured", "4.00 missed"]
    assert rows[f"{step}: time, inplace over reference"] == ["at least 8", "not measured", "8.00 met"]
    assert rows[f"{step}: % copy, cpu"] == ["at least 60", "not measured", "59.00 missed"]
    assert rows[f"{step}: % copy, inplace"] == ["at least 60", "not measured", "118.00 met"]
    cells, mlstm_goals, step_goals = [25, 20, 25, 15, 20, 15, 1.1, 1.3, 1.05, 1.15], [2, 5, 4, 4], [*[8] * 6, 60, 60]
    model_goals = [2.5, 6, 2, 2, 2, 80]
    bounds = [float(wanted.removeprefix("at least ")) for wanted, *_ in rows.values()]
    assert bounds == [*cells, *mlstm_goals, *step_goals, *model_goals]


def on_gpu(path: Path) -> Path:
    """The file as if it came from a GPU."""
    results = json.loads(path.read_text())
    for record in results["cases"]:
        record["device"] = "cuda"
    path.write_text(json.dumps(results))
    return path


def test_goals_on_a_gpu_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, large = "B=1,H=8,Dqk=256,Dv=512", LARGE_STEP
    paths = goal_files(
        tmp_path,
        [
            ("mlstm_step", one, "step", {"cuda-graph": {"median": 7.9e-6, "copy_percent": 20.0}}),
            ("mlstm_step", large, "step", {"cuda-inplace": {"median": 1.0, "copy_percent": 80.0}}),
        ],
        [
            ("mlstm_step", one, "step", {"cuda-graph": {"median": 8.1e-6}}),
            ("mlstm_step", large, "step", {"cuda-inplace": {"median": 1.0, "copy_percent": 79.9}}),
        ],
    )
    on_cpu = verdicts(paths, capsys, "cuda")
    assert {verdict for _, *columns in on_cpu.values() for verdict in columns} == {"not measured"}
    rows = verdicts([on_gpu(path) for path in paths], capsys, "cuda")
    latency = f"mlstm_step {one} float32 step cuda: microseconds, cuda-graph"
    assert rows.pop(latency) == ["at most 8", "7.90 met", "8.10 missed"]
    copy = f"mlstm_step {large} float32 step cuda: % copy, cuda-inplace"
    assert rows.pop(copy) == ["at least 80", "80.00 met", "79.90 missed"]
    assert {verdict for _, *columns in rows.values() for verdict in columns} == {"not measured"}


def test_goals_of_the_mlstm_on_a_gpu_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape, xl = "B=8,H=16,S=8192,Dqk=128,Dv=256", "mlstm_kernels-xl_chunk"
    wrong = {"median": 5.2e-3, "wrong": "relative error of df 2.0e-02"}  # its time counts all the same
    (path,) = goal_files(
        tmp_path,
        [
            ("mlstm", shape, "fwd", {"cuda": {"median": 1.15e-3}, xl: {"median": 2.0e-3}}),
            ("mlstm", shape, "fwdbwd", {"cuda": {"median": 5.1e-3}, xl: {**wrong, "median": 10.3e-3}}),
        ],
    )
    results = json.loads(on_gpu(path).read_text())
    for record in results["cases"]:
        record["dtype"] = "bfloat16"
    path.write_text(json.dumps(results))
    rows, case = verdicts([path], capsys, "cuda"), f"mlstm {shape} bfloat16"
    assert rows[f"{case} fwd cuda: milliseconds, cuda"] == ["at most 1.2", "1.15 met"]
    assert rows[f"{case} fwdbwd cuda: milliseconds, cuda"] == ["at most 5", "5.10 missed"]
    assert rows[f"{case} fwd cuda: time, cuda over {xl}"] == ["at least 2", "1.74 missed"]
    assert rows[f"{case} fwdbwd cuda: time, cuda over {xl}"] == ["at least 2", "2.02 met"]


TIMED = {"cpu": {"median": 1.0, "peak_bytes": 1}, "mlstm_kernels": {"median": 9.0, "peak_bytes": 9}}


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "bfloat16"},
        {"device": "cuda"},
        {"mode": "fwd"},
        {"shape": {"B": 1, "H": 4, "S": 1024, "Dqk": 64, "Dv": 128}},
        {"results": [{"impl": "cpu", "check": {}, **TIMED["cpu"]}]},
        {"results": [{"impl": name, **figures} for name, figures in TIMED.items()]},  # unchecked
        {"results": [{"impl": "cpu", "error": "wrong"}, {"impl": "mlstm_kernels", "check": {}, **TIMED["cpu"]}]},
        {"results": [{"impl": name, "check": {}, "peak_bytes": None} for name in TIMED]},
    ],
    ids=["dtype", "device", "mode", "shape", "peer missing", "unchecked", "wrong", "memory unknown"],
)
def test_goals_count_only_what_was_measured(
    change: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = goal_files(tmp_path, [("mlstm", MLSTM, "fwdbwd", TIMED)])
    assert [columns[1] for columns in verdicts([path], capsys).values()].count("9.00 met") == 2
    results = json.loads(path.read_text())
    results["cases"][0] |= change
    path.write_text(json.dumps(results))
    assert {columns[1] for columns in verdicts([path], capsys).values()} == {"not measured"}


@pytest.mark.parametrize("device", GOALS)
def test_suites_measure_every_goal(device: str) -> None:
    suites = {"cpu": ("cpu", "model"), "cuda": ("cuda", "cuda-mlstm", "paper-flashrnn")}[
        device
    ]  # as docs/benchmarks.md says
    cases = [case for name in suites for case in SUITES[name]]
    measured = {(case.label, impl) for case in cases for impl in case.impls or IMPLEMENTATIONS}
    for goal in GOALS[device]:
        assert {(goal.case.label, goal.impl), (goal.case.label, goal.over or goal.impl)} <= measured, goal.label


@pytest.mark.parametrize("content", [None, "", "[]", '{"format": 0, "cases": []}', '{"format": 1}'])
def test_goals_refuse_bad_files(content: str | None, tmp_path: Path, smoke: Path, capsys: Any) -> None:
    bad = tmp_path / "bad.json"
    if content is not None:
        bad.write_text(content)
    status, printed = run(f"goals {smoke} {bad}", capsys)
    assert status == 2 and f"bench: {bad}: " in printed and "met" not in printed


def test_goals_of_a_run(smoke: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {columns[1] for columns in verdicts([smoke], capsys).values()} == {"not measured"}
