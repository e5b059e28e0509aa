"""bench/: what is measured of this library on a GPU alone, tested without one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from bench import cuda, ours, runner
from bench.calls import Call
from bench.cases import Case, parse_shape
from bench.check import Checker, copies
from bench.implementations import IMPLEMENTATIONS
from bench.ops import OPS
from xlstm_cuda import _ops


@pytest.mark.parametrize("name", [name for name in IMPLEMENTATIONS if name.startswith("cuda")])
def test_ours_on_a_gpu_need_their_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = {("xlstm_cuda", "recurrent_step", "cuda"), ("xlstm_cuda", "mlstm_step", "cpu")}
    monkeypatch.setattr(_ops, "_kernels", kernels)
    impl = replace(IMPLEMENTATIONS[name], missing=lambda: None)
    for op in impl.builders:
        reason = impl.why_not(OPS[op], {}, "cuda")
        assert (reason is None) == (op in ("slstm_step", "lstm_step"))
        assert (
            reason is None or reason.startswith("has no CUDA kernel of mlstm_step, mlstm_step_") or op != "mlstm_step"
        )


STEP = Case("mlstm_step", parse_shape("mlstm_step", "B=2,H=2,Dqk=32,Dv=16"), "step", "bfloat16")


def test_a_state_in_16_bits_counts_its_own_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def builder(t: dict[str, Any]) -> Call:
        call = ours.inplace_step_in_16_bits(t)
        return Call(IMPLEMENTATIONS["cpu"].builders["mlstm_step"](t).run, call.leaves, nbytes=call.nbytes)

    inputs = OPS["mlstm_step"].draw(STEP.shape, torch.bfloat16, "cpu")
    full = OPS["mlstm_step"].bytes(STEP.shape, "step", torch.bfloat16)
    nbytes = ours.inplace_step_in_16_bits(inputs).nbytes
    assert nbytes is not None and nbytes == full - inputs["C"].nbytes  # half, twice
    monkeypatch.setitem(IMPLEMENTATIONS, "16", replace(IMPLEMENTATIONS["inplace"], builders={"mlstm_step": builder}))
    (record,) = runner.run([replace(STEP, impls=("cpu", "16"))], runner.Options(1, repeats=2, max_seconds=0))["cases"]
    half, whole = (entry["gbs"] * entry["median"] for entry in reversed(record["results"]))
    assert half / whole == pytest.approx(nbytes / full)


def test_a_graph_starts_from_the_state_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warming up overwrites a state in place."""

    class Graph:
        def __init__(self, call: Call) -> None:
            self.call, self.outputs = call, [call.run() for _ in range(4)][-1]

        def replay(self) -> None:
            for static, x in zip(self.outputs, self.call.run(), strict=True):
                static.copy_(x)

    def captured(call: Call) -> tuple[Any, Any]:
        graph = Graph(call)
        return graph, graph.outputs

    monkeypatch.setattr(cuda, "_captured", captured)
    checker = Checker(replace(STEP, dtype="float32"))
    assert checker.errors(cuda.graphed(ours.inplace_step))["C"] < 1e-6
    t = copies(checker.inputs, "step")
    call = cuda.graphed(ours.inplace_step)(t)
    call.run()
    assert not torch.equal(t["C"], checker.inputs["C"])
