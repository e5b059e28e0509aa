"""bench counters: what is compared with the table, and that the executor counts what a kernel does."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from bench import counters
from bench.__main__ import main
from tests.support.variants import requested
from xlstm_cuda import _ops
from xlstm_cuda.functional import mlstm
from xlstm_cuda.testing import mlstm_inputs

needs_ptx = pytest.mark.skipif(not _ops.available(_ops.PTX_NAMESPACE), reason="make ptx builds it")


def cost(requests: int, sectors: int = 0, wavefronts: int = 0) -> dict[str, int]:
    return {"requests": requests, "bytes": 0, "sectors": sectors, "wavefronts": wavefronts, "least_wavefronts": 1}


def kernels(instructions: int, sectors: int) -> dict[str, Any]:
    classes = {"fp32": instructions - 10, "tensor": 10}
    return {"k": {"warps": 1, "instructions": classes, "traffic": {"ld.global": cost(5, sectors)}, "lines": {}}}


@pytest.mark.parametrize(
    ("instructions", "sectors", "lines"),
    [(1000, 100, 0), (1020, 102, 0), (900, 50, 0), (1021, 100, 1), (1000, 103, 1), (1100, 200, 2)],
)
def test_two_percent_more_is_worse(instructions: int, sectors: int, lines: int) -> None:
    old, new = counters.summary(kernels(1000, 100)), counters.summary(kernels(instructions, sectors))
    assert len(counters.worse(old, new, "case")) == lines


def test_a_kernel_that_the_table_lacks_is_worse() -> None:
    assert counters.worse({}, counters.summary(kernels(1, 1)), "case") == ["case: k is not in the table"]


def test_the_table_of_a_case() -> None:
    text = counters.table("one", counters.summary(kernels(1000, 100)))
    assert "| instructions | 1,000 |" in text and "| instructions per mma | 100.0 |" in text


def test_the_committed_table_has_every_case() -> None:
    table = counters.read()
    assert [*table] == [*counters.CASES]
    assert all(row["instructions"] > 0 for counts in table.values() for row in counts.values())


@needs_ptx
def test_counts_are_those_of_the_call() -> None:
    """Twice the heads: twice the instructions and the products, in each kernel."""

    def run(heads: int) -> dict[str, Any]:
        inputs = mlstm_inputs(1, heads, 128, 64, 64, dtype=torch.bfloat16)
        return counters.counted(lambda: mlstm(**inputs, backend="ptx"))

    with requested(_ops.library(_ops.PTX_NAMESPACE).mlstm_variant, "passes mma"):  # gates, states, outputs
        one, two = run(1), run(2)
    assert one.keys() == two.keys() and len(one) >= 3
    outputs = next(name for name in one if "output" in name)
    assert two[outputs]["instructions"]["tensor"] == 2 * one[outputs]["instructions"]["tensor"] > 0
    assert two[outputs]["warps"] == 2 * one[outputs]["warps"]
    # chunks of 64 tokens: q k^T and the weighted sums, at least; 16 x 8 x 16 a product of a warp
    least = 128 * 64 * (64 + 64) // (16 * 8 * 16)
    assert one[outputs]["instructions"]["tensor"] >= least // 2


@needs_ptx
def test_nothing_is_counted_where_nobody_asked() -> None:
    ops = _ops.library(_ops.PTX_NAMESPACE)
    counters.counted(lambda: None)
    mlstm(**mlstm_inputs(1, 1, 16, 16, 16), backend="ptx")
    assert json.loads(ops.ptx_counters()) == {}


def test_without_the_library_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(_ops, "available", lambda _: False)
    assert main(["counters"]) == 2
    assert "run `make ptx`" in capsys.readouterr().err


@needs_ptx
def test_a_case_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["counters", "--case", "nothing"]) == 2
    assert "no case has this in its name" in capsys.readouterr().err
