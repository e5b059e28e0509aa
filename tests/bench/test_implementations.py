"""bench/: wrong implementations, the compiled reference, the fastest of several ways, and peers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import xlstm_cuda
from bench import measure, memory, ours
from bench.calls import Builder, Call, Implementation
from bench.cases import Case, make_case
from bench.check import Checker, WrongResult, copies
from bench.implementations import IMPLEMENTATIONS
from bench.ops import KERNEL_OPS, OPS, Outputs, Shape, Tensors
from tests.support.bench_runs import SHAPES, run, stand_in
from tests.support.paths import ROOT
from xlstm_cuda import reference

pytestmark = pytest.mark.usefixtures("quick")


# Wrong implementations


def scaled(t: Tensors) -> Call:
    return Call(lambda: (xlstm_cuda.mlstm(**t) * 1.001,), t)


def without_normaliser_gradient(t: Tensors) -> Call:
    return Call(lambda: (xlstm_cuda.mlstm(**t, norm_grad=False),), t)


def one_nan(t: Tensors) -> Call:
    def forward() -> tuple[torch.Tensor, ...]:
        h = xlstm_cuda.mlstm(**t)
        return (h.index_fill(2, torch.tensor([3]), float("nan")),)

    return Call(forward, t)


def transposed_gradient(t: Tensors) -> Call:
    return Call(lambda: (xlstm_cuda.mlstm(**t),), t, {"v": lambda g: g.mT})


def other_dtype(t: Tensors) -> Call:
    return Call(lambda: (xlstm_cuda.mlstm(**t).double(),), t)


def failing(t: Tensors) -> Call:
    def forward() -> tuple[torch.Tensor, ...]:
        raise RuntimeError("out of luck")

    return Call(forward, t)


WRONG: dict[Builder, str] = {
    scaled: "relative error of h 1.0e-03",
    without_normaliser_gradient: "relative error of dq",
    one_nan: "relative error of h inf",
    transposed_gradient: "relative error of dv inf",
    other_dtype: "h has dtype torch.float64",
    failing: "failed: RuntimeError: out of luck",
}


@pytest.mark.parametrize("builder", WRONG, ids=lambda builder: builder.__name__)
def test_a_wrong_result_is_not_timed(
    builder: Builder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(IMPLEMENTATIONS, "bad", Implementation("bad", {"mlstm": builder}))
    case = f"run --op mlstm --impl cpu,bad --shape B=1,H=1,S=20,Dqk=8,Dv=8 --json {tmp_path}/a.json"
    status, printed = run(case, capsys)
    good, bad = json.loads((tmp_path / "a.json").read_text())["cases"][0]["results"]
    assert status == 1 and WRONG[builder] in printed
    assert f"| bad | {'failed' if builder is failing else 'wrong result'}, not timed |" in printed
    assert "median" in good and "error" not in good
    assert WRONG[builder] in bad["error"] and "median" not in bad


def test_a_wrong_gradient_passes_forward_only_and_without_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = Implementation("bad", {"mlstm": without_normaliser_gradient})
    monkeypatch.setitem(IMPLEMENTATIONS, "bad", bad)
    case = "run --op mlstm --impl bad --shape B=1,H=1,S=20,Dqk=8,Dv=8"
    assert run(f"{case} --mode fwdbwd", capsys)[0] == 1
    assert run(f"{case} --mode fwd", capsys)[0] == 0
    assert run(f"{case} --mode fwdbwd --no-check", capsys)[0] == 0


def test_inplace_steps_do_not_disturb_each_other() -> None:
    case = make_case("mlstm_step", "B=1,H=1,Dqk=8,Dv=8", None, "float32", "cpu", None)
    checker = Checker(case)
    before = copies(checker.inputs, "step")
    for _ in range(2):
        checker.errors(IMPLEMENTATIONS["inplace"].builders["mlstm_step"])
    assert all(torch.equal(x, before[name]) for name, x in checker.inputs.items())
    stale = copies(checker.inputs, "step")
    IMPLEMENTATIONS["inplace"].builders["mlstm_step"](stale).run()
    assert not torch.equal(stale["C"], before["C"])
    with pytest.raises(WrongResult):
        checker.errors(lambda _: IMPLEMENTATIONS["inplace"].builders["mlstm_step"](stale))


# The compiled reference


@pytest.mark.parametrize("op", KERNEL_OPS)
def test_the_reference_compiled_by_inductor_agrees_and_is_compiled_beforehand(op: str) -> None:
    reason = IMPLEMENTATIONS["reference-compiled"].missing()
    if reason is not None:
        assert not shutil.which("g++"), reason
        pytest.skip(reason)
    builder, mode = IMPLEMENTATIONS["reference-compiled"].builders[op], OPS[op].modes[-1]
    checker = Checker(Case(op, SHAPES[op] | ({"S": 2} if "S" in SHAPES[op] else {}), mode))
    call = builder(copies(checker.inputs, mode))
    with torch.compiler.set_stance("fail_on_recompile"), torch.set_grad_enabled(mode == "fwdbwd"):
        call.run()
    checker.errors(builder)


COMPILED: dict[str, Shape] = {**SHAPES, "lm": {"B": 2, "S": 9, "D": 32, "M": 1, "N": 1}}


@pytest.mark.parametrize("op, mode", [(op, mode) for op in COMPILED for mode in OPS[op].modes])
def test_compiling_takes_one_call_as_it_is_timed(op: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[object] = []

    def compile(function: Any, *, fullgraph: bool, dynamic: bool) -> Any:
        assert fullgraph and not dynamic  # no falling back to eager, no general shapes

        def run(t: Tensors) -> Outputs:
            outputs = function(t)
            log.append(torch.is_grad_enabled())
            if outputs[0].requires_grad:
                outputs[0].register_hook(lambda g: log.append("backward"))
            return outputs

        return run

    monkeypatch.setattr(torch, "compile", compile)
    inputs = OPS[op].draw(COMPILED[op], torch.float32, "cpu")
    IMPLEMENTATIONS["reference-compiled"].builders[op](copies(inputs, mode))
    assert log == ([True, "backward"] if mode == "fwdbwd" else [False])


def test_a_compiled_model_is_the_chunkwise_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    builder, inputs = (
        IMPLEMENTATIONS["reference-compiled"].builders["lm"],
        OPS["lm"].draw(COMPILED["lm"], torch.float32, "cpu"),
    )
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    Checker(Case("lm", COMPILED["lm"], "fwdbwd")).errors(builder)
    monkeypatch.setattr(reference, "mlstm", None)  # the form that goes token by token
    builder(copies(inputs, "fwdbwd")).run()


@pytest.mark.slow  # half a minute
def test_a_model_compiled_by_inductor_agrees() -> None:
    builder = IMPLEMENTATIONS["reference-compiled"].builders["lm"]
    shape = {**COMPILED["lm"], "N": 0}
    assert IMPLEMENTATIONS["reference-compiled"].why_not(OPS["lm"], shape, "cpu") is None
    Checker(Case("lm", shape, "fwdbwd")).errors(builder)


def test_the_compiled_reference_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    reason = IMPLEMENTATIONS["reference-compiled"].why_not(OPS["mlstm_step"], SHAPES["mlstm_step"], "cpu")
    assert reason == "needs a C++ compiler at run time, and there is no no-such-compiler"
    monkeypatch.setenv("CXX", sys.executable)
    assert IMPLEMENTATIONS["reference-compiled"].missing() is None
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    assert "there is no g++" in str(IMPLEMENTATIONS["reference-compiled"].missing())


@pytest.mark.parametrize("op, limit", [("mlstm", 1024), ("slstm", 8), ("lstm", 8)])
def test_the_compiled_reference_refuses_long_loops(op: str, limit: int) -> None:
    refuses = IMPLEMENTATIONS["reference-compiled"].refuses
    assert refuses(op, {**SHAPES[op], "S": limit}) is None
    assert f"S > {limit}" in str(refuses(op, {**SHAPES[op], "S": limit + 1}))
    assert refuses(f"{op}_step", SHAPES[f"{op}_step"]) is None


def test_the_compiled_reference_refuses_large_models() -> None:
    refuses = IMPLEMENTATIONS["reference-compiled"].refuses
    shape = {"B": 8, "S": 256, "D": 64, "M": 6, "N": 0}
    assert refuses("lm", shape) is None
    assert "M S > 1536" in str(refuses("lm", {**shape, "M": 7}))
    assert "S > 8" in str(refuses("lm", {**shape, "M": 1, "N": 1}))
    assert refuses("causal_conv1d", {**SHAPES["causal_conv1d"], "S": 4096}) is None


# Ways: the fastest of several stands for an implementation


class Clock:
    """Stands in for the module time: a millisecond passes whenever it is read, and more only where it is told to."""

    now = 0.0

    def perf_counter(self) -> float:
        self.sleep(0.001)
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = Clock()
    for module in (measure, sys.modules[__name__]):
        monkeypatch.setattr(module, "time", stand_in)


def slowed(seconds: float, factor: float = 1.0) -> Builder:
    def forward(t: Tensors) -> Outputs:
        time.sleep(seconds)
        return (xlstm_cuda.mlstm(**t) * factor,)

    return lambda t: Call(lambda: forward(t), t)


def with_ways(**ways: Builder) -> Implementation:
    return Implementation("peer", {"mlstm": next(iter(ways.values()))}, choices=lambda op, shape, mode: ways)


PEER = "run --op mlstm --impl peer --shape B=1,H=1,S=32,Dqk=8,Dv=8"


@pytest.mark.usefixtures("clock")
def test_the_fastest_way_is_checked_timed_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ways = {"slow": slowed(0.05, factor=2), "quick": slowed(0), "medium": slowed(0.05, factor=2)}
    monkeypatch.setitem(IMPLEMENTATIONS, "peer", with_ways(**ways))
    status, printed = run(f"{PEER} --json {tmp_path}/a.json", capsys)
    (entry,) = json.loads((tmp_path / "a.json").read_text())["cases"][0]["results"]
    assert status == 0 and "| peer (quick) |" in printed
    assert entry["note"] == "quick" and entry["median"] == pytest.approx(0.001)


@pytest.mark.usefixtures("clock")
def test_the_fastest_way_has_to_be_right(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(IMPLEMENTATIONS, "peer", with_ways(slow=slowed(0.05), quick=slowed(0, factor=2)))
    status, printed = run(PEER, capsys)
    assert status == 1 and "| peer (quick) | wrong result, not timed |" in printed


def test_a_way_that_fails_is_not_timed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(IMPLEMENTATIONS, "peer", with_ways(good=slowed(0), bad=failing))
    status, printed = run(f"{PEER.replace('peer', 'cpu,peer')} --no-check", capsys)
    assert status == 1 and "peer: failed: RuntimeError: out of luck" in printed and "| cpu | " in printed


@pytest.mark.usefixtures("clock")
def test_memory_is_that_of_the_way_that_was_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    requests: list[dict[str, Any]] = []

    def child(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        requests.append(json.loads(command[-1]))
        return subprocess.CompletedProcess(command, 0, stdout="1234567\n", stderr="")

    monkeypatch.setitem(IMPLEMENTATIONS, "peer", with_ways(slow=slowed(0.05), quick=slowed(0)))
    monkeypatch.setattr(memory, "subprocess", SimpleNamespace(run=child))
    assert run(f"{PEER} --memory --json {tmp_path}/a.json", capsys)[0] == 0
    (entry,) = json.loads((tmp_path / "a.json").read_text())["cases"][0]["results"]
    assert [request["note"] for request in requests] == ["quick"] and entry["peak_bytes"] == 1234567


def test_the_child_process_calls_the_way_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def way(note: str) -> Builder:
        def forward(t: Tensors) -> Outputs:
            called.append(note)
            return (t["v"],)

        return lambda t: Call(lambda: forward(t), t)

    monkeypatch.setitem(IMPLEMENTATIONS, "peer", with_ways(a=way("a"), b=way("b")))
    case = {"op": "mlstm", "shape": SHAPES["mlstm"], "mode": "fwd"}
    memory._in_child(json.dumps({"case": case, "impl": "peer", "note": "b", "threads": torch.get_num_threads()}))
    assert called and set(called) == {"b"}


@pytest.mark.parametrize(
    "S, sizes",
    [
        (1024, [16, 32, 64, 128, 256]),
        (96, [16, 32]),
        (100, [100]),  # one chunk
        (256 + 32, [16, 32]),
        (1000, []),
    ],
)
def test_chunk_sizes_of_the_peer(S: int, sizes: list[int]) -> None:
    impl, shape = IMPLEMENTATIONS["mlstm_kernels"], {**SHAPES["mlstm"], "S": S}
    assert list(impl.choices("mlstm", shape, "fwd")) == [f"chunk {size}" for size in sizes]
    assert impl.refuses("mlstm", shape) == (None if sizes else "needs S divisible by 16, or at most 256")
    assert list(impl.ways("mlstm_step", SHAPES["mlstm_step"], "step")) == [""]


@pytest.mark.usefixtures("clock")
def test_the_peer_is_timed_at_its_best_chunk_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tried: list[int] = []

    def kernel(*qkvif: torch.Tensor, chunk_size: int) -> torch.Tensor:
        tried.append(chunk_size)
        time.sleep(0 if chunk_size == 32 else 0.05)
        h = xlstm_cuda.mlstm(*qkvif)
        assert isinstance(h, torch.Tensor)
        return h

    stand_in(monkeypatch, "mlstm_kernels.torch", get_mlstm_kernel=lambda name: kernel)
    case = "run --op mlstm --impl mlstm_kernels --shape B=1,H=1,S=64,Dqk=8,Dv=8"
    status, printed = run(f"{case} --json {tmp_path}/a.json", capsys)
    (entry,) = json.loads((tmp_path / "a.json").read_text())["cases"][0]["results"]
    assert status == 0 and "| mlstm_kernels (chunk 32) |" in printed
    assert entry["impl"] == "mlstm_kernels" and entry["note"] == "chunk 32" and entry["median"] == pytest.approx(0.001)
    assert set(tried) == {16, 32, 64}


# Peers


def test_every_file_of_peers_adds_peers_under_names_of_their_own() -> None:
    files = {file.stem for file in (ROOT / "bench" / "peers").glob("*.py")} - {"__init__"}
    theirs = {name: import_module(f"bench.peers.{name}").IMPLEMENTATIONS for name in files}
    assert all(impl.peer for impls in theirs.values() for impl in impls)
    assert not any(impl.peer for impl in ours.IMPLEMENTATIONS)
    assert len(IMPLEMENTATIONS) == sum(map(len, (ours.IMPLEMENTATIONS, *theirs.values())))
    assert sum(impl.peer for impl in IMPLEMENTATIONS.values()) == sum(map(len, theirs.values())) > len(files)


def test_the_peers_extra_names_the_packages_that_are_looked_for() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = {re.split(r"[\s;]", requirement)[0] for requirement in project["optional-dependencies"]["peers"]}
    assert {"xlstm", "mlstm_kernels"} <= extra & set(IMPLEMENTATIONS)
