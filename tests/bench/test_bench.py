"""bench/: registry, shapes, formulas, measurements, result files, comparison and report."""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch

from bench import __main__ as main
from bench import calls, check, measure, memory, runner
from bench.calls import Call
from bench.cases import DTYPES, SUITES, Case, UsageError, format_shape, parse_shape
from bench.check import MAX_BYTES, Checker, affordable, copies
from bench.compare import compare
from bench.implementations import IMPLEMENTATIONS
from bench.ops import KERNEL_OPS, OPS, Outputs, Shape, Tensors
from bench.report import BEGIN, END, markdown, ratios
from tests.support.bench_runs import SHAPES, run

pytestmark = pytest.mark.usefixtures("quick")


# Registry and cases


@pytest.mark.parametrize("op", KERNEL_OPS)
def test_every_op_has_ours_and_the_reference(op: str) -> None:
    names = [name for name, impl in IMPLEMENTATIONS.items() if op in impl.builders]
    assert {"cpu", "cuda", "reference"} <= set(names)
    assert IMPLEMENTATIONS["cpu"].why_not(OPS[op], SHAPES[op], "cpu") is None
    assert "does not run on cpu" in str(IMPLEMENTATIONS["cuda"].why_not(OPS[op], SHAPES[op], "cpu"))


def runnable() -> Iterator[Any]:
    """All but the compiled ones, which have tests of their own."""
    for op, shape in SHAPES.items():
        for name, impl in IMPLEMENTATIONS.items():
            if op in impl.builders and "cpu" in impl.devices and name != "reference-compiled":
                one_head = {"H": 1} if name.startswith("torch.nn") else {}
                whole_chunks = {"S": 64} if (op, name) == ("mlstm", "mlstm_kernels") else {}
                yield pytest.param(op, name, {**shape, **one_head, **whole_chunks}, id=f"{op}-{name}")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op, name, shape", list(runnable()))
def test_adapters_agree_with_float64(op: str, name: str, shape: Shape, dtype: str) -> None:
    impl = IMPLEMENTATIONS[name]
    reason = impl.why_not(OPS[op], shape, "cpu")
    if reason is not None:
        assert not importlib.util.find_spec(name), reason  # only a peer that is not installed may be left out
        pytest.skip(reason)
    for mode in OPS[op].modes:
        errors = Checker(Case(op, shape, mode, dtype)).errors(impl.builders[op])
        assert any(name in errors for name in ("dW", "dq", "dx", "dh")) == (mode == "fwdbwd")


def test_suites_hold_valid_cases() -> None:
    for suite in SUITES.values():
        for case in suite:
            assert tuple(case.shape) == OPS[case.op].keys
            assert case.mode in OPS[case.op].modes and case.dtype in DTYPES
            assert set(case.impls or ()) <= set(IMPLEMENTATIONS)


def test_the_cpu_suite_has_forward_only_cases_of_the_cells() -> None:
    of_mode = {
        mode: [(case.op, case.shape) for case in SUITES["cpu"] if case.op in ("slstm", "lstm") and case.mode == mode]
        for mode in ("fwd", "fwdbwd")
    }
    assert of_mode["fwd"] == of_mode["fwdbwd"] and len(of_mode["fwd"]) == 5


def test_compiling_is_for_the_cpu_suite_only() -> None:
    def compiled(suite: str) -> list[str]:
        return [case.op for case in SUITES[suite] if "reference-compiled" in (case.impls or IMPLEMENTATIONS)]

    assert compiled("smoke") == []
    assert compiled("cpu") == ["mlstm", *["mlstm_step"] * 3]


@pytest.mark.parametrize("op", KERNEL_OPS)
def test_shape_parser_round_trip(op: str) -> None:
    assert parse_shape(op, format_shape(SHAPES[op])) == SHAPES[op]
    backwards = ", ".join(f"{key}={value}" for key, value in reversed(SHAPES[op].items()))
    assert list(parse_shape(op, backwards).items()) == list(SHAPES[op].items())


@pytest.mark.parametrize(
    "text, message",
    [
        ("B=1,H=2,S=3", "shape lacks D"),
        ("B=1,H=2,S=3,D=4,Dv=5", "unknown shape key 'Dv'"),
        ("B=1,H=2,S=3,D=4,D=4", "D given twice"),
        ("B=1,H=2,S=3,D=0", "D must be a positive integer, got '0'"),
        ("B=1,H=2,S=3,D=-4", "D must be a positive integer, got '-4'"),
        ("B=1,H=2,S=3,D=x", "D must be a positive integer, got 'x'"),
        ("B=1,H=2,S=3,D", "D must be a positive integer, got ''"),
        ("", "unknown shape key ''"),
    ],
)
def test_shape_parser_refuses(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_shape("slstm", text)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("run --op gru --shape B=1", "unknown op 'gru': expected one of mlstm,"),
        ("run --op slstm --shape B=1,S=2,H=1,D=4 --impl cpu,fast", "unknown implementation 'fast'"),
        ("run --op slstm --shape B=1,S=2,H=1,D=4 --dtype int8", "unknown dtype 'int8'"),
        ("run --op slstm --shape B=1,S=2,H=1,D=4 --mode step", "mode must be one of fwd, fwdbwd"),
        ("run --op slstm --shape B=1,S=2,H=1,D=4 --device tpu", "unknown device 'tpu'"),
        ("run --op slstm --shape B=1,S=2,H=1,D=4 --impl torch.nn.LSTM", "torch.nn.LSTM has no slstm"),
        ("run --op lstm --shape B=1,S=2,H=2,D=4 --impl torch.nn.LSTM", "has one head only"),
        ("run --op slstm --shape B=1,S=2,H=1,D=4 --impl cuda", "cuda does not run on cpu"),
        ("run --op slstm", "run needs --op and --shape, or --suite"),
        ("run --suite gpu", "unknown suite 'gpu'"),
        ("run --suite smoke,gpu", "unknown suite 'gpu'"),
        ("run --suite smoke --dtype float64", "--suite does not go together with --dtype"),
        ("report /nowhere.json", "/nowhere.json: cannot be read"),
    ],
)
def test_mistakes_are_told(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, printed = run(arguments, capsys)
    assert status == 2 and message in printed


# The formulas


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("op", KERNEL_OPS)
def test_traffic_is_that_of_inputs_and_outputs(op: str, dtype: str) -> None:
    inputs = OPS[op].draw(SHAPES[op], DTYPES[dtype], "cpu")
    outputs = IMPLEMENTATIONS["cpu"].builders[op](inputs).run()
    expected = sum(x.nbytes for x in (*inputs.values(), *outputs))
    assert OPS[op].bytes(SHAPES[op], OPS[op].modes[0], DTYPES[dtype]) == expected


def test_work_by_hand() -> None:
    assert OPS["mlstm"].work({"B": 2, "H": 3, "S": 5, "Dqk": 4, "Dv": 7}, "fwd") == 2 * 3 * 5 * 4 * 4 * 8
    assert OPS["slstm"].work({"B": 2, "S": 5, "H": 3, "D": 4}, "fwdbwd") == 3 * 2 * 5 * 3 * 4 * 2 * 16
    assert OPS["lstm_step"].work({"B": 2, "H": 1, "D": 4}, "step") == 2 * 2 * (4 * 2 * 16)


def test_checks_are_reduced_only_where_they_must_be() -> None:
    for case in SUITES["cpu"]:
        shape = affordable(OPS[case.op], case.shape, case.mode)
        assert OPS[case.op].bytes(shape, case.mode, torch.float64) <= MAX_BYTES
        assert shape == case.shape or (shape["B"] < case.shape["B"] and case.op == "mlstm_step")
    long = {"B": 8, "S": 2000, "H": 2, "D": 32}
    assert affordable(OPS["slstm"], long, "fwd") == long
    assert affordable(OPS["slstm"], long, "fwdbwd") == {**long, "S": 1000}


# Measurements


def test_the_gradient_of_h_comes_in_its_layout() -> None:
    strides: list[tuple[int, ...]] = []

    def forward(t: Tensors) -> Outputs:
        h = (t["x"] * 2).mT
        h.register_hook(lambda g: strides.append(g.stride()))
        return (h,)

    t = copies({"x": torch.ones(3, 5)}, "fwdbwd")
    check.runner(Call(lambda: forward(t), t), "fwdbwd")()
    assert strides == [(1, 5)]


@pytest.mark.parametrize("mode", ["fwd", "step", "fwdbwd"])
def test_gradients_are_recorded_only_where_they_are_wanted(mode: str) -> None:
    seen: list[tuple[bool, bool]] = []

    def forward(t: Tensors) -> Outputs:
        seen.append((torch.is_grad_enabled(), t["x"].requires_grad))
        return (t["x"] * 2,)

    t = copies({"x": torch.ones(3)}, mode)
    outputs, gradients = check.runner(Call(lambda: forward(t), t), mode)()
    assert set(seen) == {(mode == "fwdbwd",) * 2}
    assert outputs[0].requires_grad == bool(gradients) == (mode == "fwdbwd")


def test_fastest_goes_by_the_shortest_time(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([9.0, 3.0, 1.0, 3.0, 9.0, 2.0, 9.0, 2.0])  # a, b, a, b, ...
    monkeypatch.setattr(measure, "_seconds", lambda call, count, device: next(times))
    assert measure.fastest({"a": lambda: None, "b": lambda: None}, "cpu", rounds=4) == "a"


def test_quantiles() -> None:
    values = [3.0, 1.0, 2.0, 5.0, 4.0]
    assert [measure.quantile(values, q) for q in (0, 0.1, 0.5, 0.9, 1)] == pytest.approx([1, 1.4, 3, 4.6, 5])
    assert measure.quantile([7.0], 0.9) == 7.0
    expected = torch.quantile(torch.tensor([0.3, 9.0, 2.0, 2.0], dtype=torch.float64), 0.37)
    assert measure.quantile([0.3, 9.0, 2.0, 2.0], 0.37) == pytest.approx(expected.item())
    with pytest.raises(ValueError):
        measure.quantile([], 0.5)


def test_implementations_take_turns() -> None:
    log: list[str] = []
    calls = {name: lambda name=name: log.append(name) for name in "abc"}
    timings = measure.interleaved(calls, "cpu", repeats=4)
    assert "".join(log) == "aabbcc" + "abc" + "bca" + "cab" + "abc"
    assert {timing.samples for timing in timings.values()} == {4}


def test_statistics_of_known_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([9.0, 9.0, *(float(t) for t in range(11))])
    monkeypatch.setattr(measure, "_seconds", lambda call, count, device: next(times))
    timing = measure.interleaved({"a": lambda: None}, "cpu", repeats=11)["a"]
    assert (timing.median, timing.p10, timing.p90, timing.samples) == (5.0, 1.0, 9.0, 11)


def test_short_calls_are_grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SAMPLE_SECONDS", 1.0)
    monkeypatch.setattr(measure, "_seconds", lambda call, count, device: 0.01)
    assert measure.interleaved({"a": lambda: None}, "cpu", repeats=1)["a"].calls_per_sample == 100


def test_slow_cases_stop_early() -> None:
    assert measure.interleaved({"a": lambda: None}, "cpu", repeats=50, max_seconds=0)["a"].samples == 3


def test_peak_memory_sees_what_was_freed_again() -> None:
    size = 2**26

    def call() -> None:
        torch.ones(size, dtype=torch.uint8)

    growth = memory.peak_growth(call)
    if growth is None:
        pytest.skip("no /proc/self/clear_refs")
    assert 0.95 * size < growth < 1.2 * size  # the kernel counts resident pages in batches
    assert memory.peak_growth(lambda: None) < size / 8


def test_peak_memory_of_a_child_process(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    case = "run --op slstm --impl cpu --shape B=8,S=2000,H=2,D=32 --threads 1 --memory --no-check"
    assert run(f"{case} --json {tmp_path}/a.json", capsys)[0] == 0
    ((entry,),) = (record["results"] for record in json.loads((tmp_path / "a.json").read_text())["cases"])
    if memory.peak_growth(lambda: None) is None:
        assert entry["peak_bytes"] is None
    else:  # h, five saved values and the gradient of x: ten numbers per token and unit, and little else
        numbers = 8 * 2000 * 2 * 32 * 10
        assert 0.9 * 4 * numbers < entry["peak_bytes"] < 2 * 4 * numbers


def test_peak_of_the_allocator_is_that_of_a_second_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a call of 7 bytes which it frees, after 100 that the first one keeps."""
    bytes_now = peak = 50

    def call() -> None:
        nonlocal bytes_now, peak
        bytes_now = max(bytes_now, 150)
        peak = max(peak, bytes_now + 7)

    def reset() -> None:
        nonlocal peak
        peak = bytes_now

    fake = {"synchronize": lambda: None, "reset_peak_memory_stats": reset}
    fake |= {"memory_allocated": lambda: bytes_now, "max_memory_allocated": lambda: peak}
    for name, function in fake.items():
        monkeypatch.setattr(torch.cuda, name, function)
    assert memory.allocator_growth(call) == 7


def test_memory_of_a_child_that_fails_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory.sys, "executable", shutil.which("false"))
    assert memory.measured(Case("slstm", SHAPES["slstm"], "fwd"), "cpu", "", 1) is None
    assert "memory of cpu: the child process failed" in capsys.readouterr().err


# Result files


def test_a_stopped_run_leaves_the_cases_it_has_finished(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    seen: list[str] = []

    def one(case: Case, *_: Any) -> dict[str, Any]:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(case.label)
        return {"results": [], "op": case.op}

    monkeypatch.setattr(runner, "_run_case", one)
    with pytest.raises(KeyboardInterrupt):
        run(f"run --suite smoke --json {tmp_path}/a.json", capsys)
    assert [record["op"] for record in json.loads((tmp_path / "a.json").read_text())["cases"]] == [
        "mlstm",
        "mlstm_step",
    ]


def test_several_suites_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "_on_devices", lambda cases, request: cases)  # no device is needed to list them
    args = main.parser().parse_args(["run", "--suite", "smoke,paper-tfla"])
    assert main._cases(args) == [*SUITES["smoke"], *SUITES["paper-tfla"]]


def test_smoke_suite(smoke: Path) -> None:
    results = json.loads(smoke.read_text())
    origin = results["provenance"]
    assert origin["threads"] == 1 and origin["torch"] == torch.__version__ and origin["cpu"]
    assert ("xlstm" in origin["peers"]) == bool(importlib.util.find_spec("xlstm"))
    assert origin["info"]["CPU SIMD level"] and {"commit", "dirty", "date"} <= set(origin)
    assert [record["op"] for record in results["cases"]] == list(KERNEL_OPS)
    assert not runner.wrong(results)
    for record in results["cases"]:
        op, top = OPS[record["op"]], results["ceilings"]["float32"]
        assert {"cpu", "reference"} <= {entry["impl"] for entry in record["results"]}
        for entry in record["results"]:
            assert 0 < entry["p10"] <= entry["median"] <= entry["p90"]
            assert entry["gflops"] == pytest.approx(1e-9 * op.work(record["shape"], record["mode"]) / entry["median"])
            assert entry["gemm_percent"] == pytest.approx(100 * entry["gflops"] / top["gemm_gflops"])
            assert entry["copy_percent"] == pytest.approx(100 * entry["gbs"] / top["copy_gbs"])
            assert entry["check"]["h"] <= 1e-5
            assert ("df" in entry["check"]) == (record["op"] == "mlstm")


def test_threads_are_put_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = torch.get_num_threads()
    case = f"run --op slstm --impl cpu --shape B=1,S=4,H=1,D=8 --threads {before + 1} --json {tmp_path}/a.json"
    assert run(case, capsys)[0] == 0
    assert json.loads((tmp_path / "a.json").read_text())["provenance"]["threads"] == before + 1
    assert torch.get_num_threads() == before


def test_implementations_that_cannot_run_are_noted() -> None:
    case = Case("lstm", {"B": 1, "S": 4, "H": 2, "D": 8}, "fwd", impls=("cpu", "torch.nn.LSTM"))
    (record,) = runner.run([case], runner.Options(threads=1, repeats=2), strict=False)["cases"]
    assert record["skipped"] == {"torch.nn.LSTM": "has one head only"}
    assert [entry["impl"] for entry in record["results"]] == ["cpu"]


def test_missing_peers_are_named() -> None:
    assert calls.without("no_such_package") == "needs the package no_such_package, which is not installed"
    assert calls.without("torch") is None


# Comparison: times of the second file as multiples of the first

NARROW, WIDE = (0.99, 1.01), (0.6, 1.5)  # p10 and p90 relative to the median


def result(factor: float, spread: tuple[float, float]) -> dict[str, Any]:
    entry = {"impl": "cpu", "median": factor, "p10": factor * spread[0], "p90": factor * spread[1]}
    record = {"op": "slstm", "shape": SHAPES["slstm"], "mode": "fwd", "dtype": "float32", "device": "cpu"}
    origin = {"cpu": "c", "gpu": None, "threads": 1, "torch": "t"}
    return {"format": 1, "provenance": origin, "ceilings": {}, "cases": [{**record, "results": [entry]}]}


@pytest.mark.parametrize(
    "factor, spread, band, verdict, status",
    [
        (1.3, NARROW, 0.05, "slower", 1),
        (1.3, WIDE, 0.05, "noise", 0),
        (3.0, WIDE, 0.05, "slower", 1),
        (1.03, NARROW, 0.05, "same", 0),
        (1.03, NARROW, 0.005, "slower", 1),
        (0.97, NARROW, 0.05, "same", 0),
        (0.7, NARROW, 0.05, "faster", 0),
        (0.7, WIDE, 0.05, "noise", 0),
    ],
)
def test_compare(
    factor: float,
    spread: tuple[float, float],
    band: float,
    verdict: str,
    status: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(result(1.0, NARROW)))
    new.write_text(json.dumps(result(factor, spread)))
    actual, printed = run(f"compare {old} {new} --band {band}", capsys)
    assert actual == status
    assert f"{factor:.3f}  {verdict}" in printed


def test_compare_names_what_differs_and_what_is_missing(smoke: Path, tmp_path: Path, capsys: Any) -> None:
    old = json.loads(smoke.read_text())
    new = copy.deepcopy(old)
    new["provenance"]["threads"] = 7
    gone = new["cases"][0]["results"].pop(0)
    other = tmp_path / "new.json"
    other.write_text(json.dumps(new))
    status, printed = run(f"compare {smoke} {other}", capsys)
    assert status == 0 and "threads: 1 / 7" in printed
    assert f"not timed in {other}: mlstm B=1,H=2,S=64,Dqk=16,Dv=16 float32 fwdbwd: {gone['impl']}" in printed
    lines, missing = compare(old, new, 0.05)
    assert len(missing) == 1 and {line.ratio for line in lines} == {1.0}


def test_compare_refuses_files_with_nothing_in_common(tmp_path: Path, smoke: Path, capsys: Any) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps(result(1.0, NARROW)))
    assert run(f"compare {smoke} {other}", capsys)[0] == 2
    other.write_text("[]")
    status, printed = run(f"compare {smoke} {other}", capsys)
    assert status == 2 and "not a result" in printed


# Report


def test_report(smoke: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold table\n{END}\nafter\n")
    for _ in range(2):  # the second replaces the first
        assert run(f"report {smoke} --readme {readme} --png {tmp_path}/plots", capsys)[0] == 0
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n") and text.endswith(f"{END}\nafter\n") and "old table" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    records = json.loads(smoke.read_text())["cases"]
    assert len(rows) == 2 + sum(len(record["results"]) for record in records)
    assert len({row.count("|") for row in rows}) == 1
    assert f"| cpu | {1e3 * records[0]['results'][0]['median']:.4g} |" in rows[2]
    assert run(f"report {smoke}", capsys)[1] == text.partition(f"{BEGIN}\n")[2].partition(END)[0]
    image = matplotlib.image.imread(tmp_path / "plots" / "smoke.png")
    assert min(image.shape[:2]) > 200 and image[..., :3].std() > 0.05


def test_ratios_are_relative_to_ours() -> None:
    peer, ours, bad = {"impl": "peer", "median": 3.0}, {"impl": "cpu", "median": 2.0}, {"impl": "bad", "error": "wrong"}
    assert ratios({"results": [peer, ours, bad]}) == {"peer": 1.5, "cpu": 1.0}
    assert ratios({"results": [peer, {"impl": "other", "median": 6.0}]}) == {"peer": 1.0, "other": 2.0}
    assert ratios({"results": [bad]}) == {}


@pytest.mark.parametrize("ceiling, unit, cell", [(9999.0, "GFLOP/s", "4321"), (8e5, "TFLOP/s", "4.32")])
def test_large_figures_have_a_large_unit(ceiling: float, unit: str, cell: str, smoke: Path) -> None:
    results = json.loads(smoke.read_text())
    results["ceilings"]["float32"]["gemm_gflops"] = ceiling
    results["cases"][0]["results"][0] |= {"gflops": 4321.0, "gbs": 3456.7}
    origin, _, head, _, row, *_ = markdown(results).splitlines()
    assert f" {unit}, copy" in origin
    cells = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    assert (cells[unit], cells["GB/s"]) == (cell, "3457")


def test_report_needs_markers(smoke: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in ("no markers", f"{BEGIN} only", f"{END} {BEGIN}"):
        readme = tmp_path / "README.md"
        readme.write_text(content)
        status, printed = run(f"report {smoke} --readme {readme}", capsys)
        assert status == 2 and BEGIN in printed
        assert readme.read_text() == content
