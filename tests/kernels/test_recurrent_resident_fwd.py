"""Forward scans with R on the chip (csrc/cuda/recurrent/resident_fwd_kernel.h): each variant, its edges, its faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.support.against_reference import check
from tests.support.executor import EXECUTOR, PLAIN, RACE, RACE_EXECUTOR, needs_executor, needs_race_build
from tests.support.mutants import missed, planted, simt_options
from tests.support.variants import only
from xlstm_cuda import _ops
from xlstm_cuda.functional import lstm, slstm
from xlstm_cuda.testing import assert_close_relative, lstm_inputs, slstm_inputs, tolerance_of

pytestmark = [
    pytest.mark.simt,
    needs_executor,
]

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
CELLS: dict[str, tuple[Callable[..., Any], Callable[..., dict[str, Any]], dict[str, Any]]] = {
    "slstm": (slstm, slstm_inputs, {}),
    "slstm_exp": (slstm, slstm_inputs, {"forget_gate": "exp"}),
    "lstm": (lstm, lstm_inputs, {}),
}


class Case(NamedTuple):
    """A call for one variant. multiprocessors: few, so that a team carries several batch tiles."""

    variant: str
    dtype: torch.dtype
    B: int
    S: int
    H: int
    D: int
    multiprocessors: int = 132
    cell: str = "slstm"


@contextmanager
def forced(variant: str, namespace: str = PLAIN, **options: Any) -> Iterator[None]:
    """Only this variant runs, on a device with these options."""
    with only(variant, namespace), simt_options(namespace, **options):
        yield


SHAPES = [
    Case("block", BF16, 3, 5, 1, 1),
    Case("block", F32, 9, 4, 2, 7, cell="slstm_exp"),
    Case("block", F64, 17, 4, 1, 24, 1, cell="lstm"),
    Case("block", F64, 3, 4, 1, 64),
    Case("block", F16, 9, 3, 3, 64, 3),
    Case("block", BF16, 1, 3, 1, 72, cell="lstm"),
    Case("block", F16, 9, 3, 1, 96, 1, cell="slstm_exp"),
    Case("block", BF16, 3, 3, 2, 128),
    Case("cluster", BF16, 3, 5, 2, 72),
    Case("cluster", F32, 9, 4, 1, 72, 2, cell="lstm"),
    Case("cluster", F16, 9, 3, 1, 200, 4, cell="slstm_exp"),
    Case("cluster", F32, 3, 3, 1, 136),
    Case("cluster", BF16, 1, 3, 1, 264),
    Case("grid", BF16, 3, 5, 2, 72, cell="slstm_exp"),
    Case("grid", F16, 17, 3, 1, 75, 2),
    Case("grid", F32, 9, 4, 1, 130, 5, cell="lstm"),
    Case("grid", BF16, 9, 3, 1, 200, 4),
    Case("grid", BF16, 1, 3, 1, 264),
    Case("grid", F32, 2, 3, 1, 264),
    # What no plan takes by itself.
    Case("cluster units=32", BF16, 9, 3, 1, 40, 2),
    Case("cluster units=32", F16, 3, 3, 1, 136),
    Case("grid units=32 teams=1", BF16, 17, 3, 1, 72),
    Case("grid units=16 teams=1", BF16, 9, 3, 1, 72, 20),
    Case("grid units=16", F32, 3, 3, 2, 24),
    # In several launches: all heads find no room at once.
    Case("grid", F32, 3, 3, 3, 72, 5, cell="lstm"),
    Case("grid units=16", BF16, 9, 3, 5, 40, 7),
]


@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_shapes(case: Case) -> None:
    function, draw, options = CELLS[case.cell]
    inputs = draw(case.B, case.S, case.H, case.D, dtype=case.dtype, state=True)
    with forced(case.variant, multiprocessors=case.multiprocessors):
        check(function, inputs, EXECUTOR, **options)


# One case of every variant, and of both ways to add up sums.
VARIANTS = [
    Case("block", BF16, 11, 6, 1, 10, 1),
    Case("cluster", BF16, 11, 6, 1, 70, 2, cell="lstm"),
    Case("cluster", F32, 2, 5, 1, 132),
    Case("grid", F32, 11, 6, 1, 70, 2, cell="slstm_exp"),
    Case("grid", F32, 2, 5, 1, 132),
]
variants = pytest.mark.parametrize("case", VARIANTS, ids=str)


def padded(case: Case) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(0, case.S + 1, (case.B,), generator=generator)
    lengths[0], lengths[-1] = 0, case.S
    return {"lengths": lengths, "reset": torch.rand(case.B, case.S, generator=generator) < 0.3}


@variants
def test_lengths_resets_and_padding_that_is_nan(case: Case) -> None:
    function, draw, options = CELLS[case.cell]
    inputs = draw(case.B, case.S, case.H, case.D, dtype=case.dtype, state=True)
    rows = padded(case)
    past = torch.arange(case.S) >= rows["lengths"][:, None]
    inputs["x"][past] = float("nan")
    with forced(case.variant, multiprocessors=case.multiprocessors):
        actual, _ = check(function, inputs, EXECUTOR, **options, **rows)
    assert not actual["h"][past].any()
    for name, start in inputs["initial_state"]._asdict().items():
        assert torch.equal(actual[f"state.{name}"][0], start[0])


@variants
def test_strides_and_what_may_be_missing(case: Case) -> None:
    function, draw, options = CELLS[case.cell]
    inputs = draw(case.B, case.S, case.H, case.D, dtype=case.dtype)
    x, R = inputs["x"], inputs["R"]
    inputs["x"] = torch.cat([x, x, x], -1).transpose(0, 1).contiguous().transpose(0, 1)[..., case.D : 2 * case.D]
    inputs["R"] = torch.cat([R, R], 2).mT.contiguous().mT[:, :, case.D :]  # `out` has stride 1
    with forced(case.variant, multiprocessors=case.multiprocessors):
        check(function, inputs, EXECUTOR, **options)
        inputs.pop("b")
        check(function, {**inputs, "x": inputs["x"][:, :1]}, EXECUTOR, **options)
        empty, state = function(**{**inputs, "x": x[:, :0]}, return_state=True, backend=EXECUTOR, **options)
    assert empty.shape[1] == 0 and not state.c.any()


def shifted(x: Tensor, elements: int) -> Tensor:
    """The same, so many elements past an address that allows any vector."""
    return torch.cat([torch.zeros(elements, dtype=x.dtype), x.flatten()])[elements:].view_as(x)


# Rows that are read and written in vectors, in words or in elements: the elements that x lies past a vector.
PIECES = [
    (Case("block", BF16, 3, 5, 2, 64), 0),
    (Case("block", BF16, 3, 5, 2, 64), 2),
    (Case("block", F16, 3, 5, 2, 64, cell="lstm"), 1),
    (Case("block", BF16, 3, 5, 2, 74), 0),
    (Case("block", F16, 3, 5, 2, 7), 0),
    (Case("block", F32, 3, 5, 2, 64), 1),
    (Case("block", F32, 3, 5, 2, 7), 0),
    (Case("block", F64, 3, 5, 2, 24), 1),
    (Case("block", F64, 3, 5, 2, 7), 0),
    (Case("cluster", BF16, 3, 5, 2, 72), 2),
    (Case("grid", F32, 3, 5, 2, 74), 0),
]


@needs_race_build
@pytest.mark.parametrize(("case", "shift"), PIECES, ids=str)
def test_rows_of_all_pieces(case: Case, shift: int) -> None:
    """In heads of both directions, with rows of a tile that end early."""
    check_short_rows(case, shift)


def check_short_rows(case: Case, shift: int = 0) -> None:
    function, draw, options = CELLS[case.cell]
    inputs = draw(case.B, case.S, case.H, case.D, dtype=case.dtype, state=True)
    inputs["x"] = shifted(inputs["x"], shift)
    lengths = (case.S - 2 * torch.arange(case.B)).clamp(min=0)
    with forced(f"{case.variant} teams=1", RACE, multiprocessors=case.multiprocessors):
        check(function, inputs, RACE_EXECUTOR, reversed_heads=1, lengths=lengths, **options)


# Heads that end within the units of a warp, or before those of a block.
SHORT_HEADS = [
    Case("block", F16, 3, 3, 1, 40, cell="lstm"),
    Case("block", F16, 3, 3, 1, 72, cell="lstm"),
    Case("block", BF16, 1, 3, 1, 7, cell="lstm"),
    Case("cluster", F16, 3, 3, 1, 72, cell="lstm"),
    Case("cluster units=32", BF16, 3, 3, 1, 44, cell="lstm"),
    Case("grid", F16, 3, 3, 1, 74, cell="lstm"),
    Case("grid units=16", F16, 3, 3, 1, 72, cell="lstm"),
]


@needs_race_build
@pytest.mark.parametrize("case", SHORT_HEADS, ids=str)
def test_infinite_h_spreads_no_further(case: Case) -> None:
    check_infinite_h(case)


def check_infinite_h(case: Case) -> None:
    """It saturates the gates of an LSTM. Units past the head have no weights, and zero times infinity is NaN."""
    function, draw, options = CELLS[case.cell]
    inputs = draw(case.B, case.S, case.H, case.D, dtype=case.dtype, state=True)
    inputs["initial_state"].h[0, 0, 5] = float("inf")
    with forced(case.variant, RACE, multiprocessors=case.multiprocessors):
        actual, _ = check(function, inputs, RACE_EXECUTOR, **options)
    assert actual["h"].isfinite().all()


def saved_by(namespace: str, case: Case, allow_tf32: bool = False) -> tuple[Tensor, ...]:
    function, draw, _ = CELLS[case.cell]
    inputs = draw(case.B, case.S, case.H, case.D, dtype=case.dtype)
    empty = [None] * 4
    rows = padded(case)
    call = _ops.library(namespace).recurrent_fwd.default
    options = _ops.CELLS[case.cell], 0, allow_tf32, True
    return call(inputs["x"], inputs["R"], inputs["b"], *empty, *rows.values(), *options)


@variants
def test_saved_values_are_those_of_the_cpu(case: Case) -> None:
    tolerance = tolerance_of(case.cell.removesuffix("_exp"), case.dtype, EXECUTOR).h
    with forced(case.variant, multiprocessors=case.multiprocessors):
        actual = saved_by(PLAIN, case)
    for a, b in zip(actual, saved_by(_ops.NAMESPACE, case), strict=True):
        assert_close_relative(a, b, tolerance)


@pytest.mark.parametrize("case", [c for c in VARIANTS if c.dtype == F32] + [Case("block", F32, 3, 4, 1, 20)], ids=str)
def test_one_pass_rounds_the_operands(case: Case) -> None:
    expected = saved_by(_ops.NAMESPACE, case)[0]
    with forced(case.variant, multiprocessors=case.multiprocessors):
        one, three = (saved_by(PLAIN, case, tf32)[0] for tf32 in (True, False))
    assert_close_relative(one, expected, 2e-3)
    assert (one - expected).abs().max() > 10 * (three - expected).abs().max()


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_results_that_are_nan_are_no_flags(dtype: torch.dtype) -> None:
    """A grid waits while a word is a certain NaN: it must not wait for a NaN that is a result."""
    inputs = slstm_inputs(2, 4, 1, 72, dtype=dtype)
    bits = torch.tensor(-0xE000F if dtype == F32 else -0xF, dtype=torch.int32 if dtype == F32 else torch.int16)
    inputs["x"][0, 1] = bits.view(dtype)  # 0xFFF1FFF1 and 0xFFF1
    with forced("grid"):
        h = slstm(**inputs, backend=EXECUTOR)
    assert h[0, 1:].isnan().all() and h[1].isfinite().all() and h[0, 0].isfinite().all()


@pytest.mark.parametrize("landing", ["early", "late", "random"])
@pytest.mark.parametrize("order", ["fifo", "lifo", "random"])
@pytest.mark.parametrize(
    "case", [Case("cluster", F32, 9, 6, 1, 132, 5), Case("grid", F32, 9, 6, 1, 132, 5)], ids=["cluster", "grid"]
)
def test_any_order_of_blocks_and_messages(case: Case, order: str, landing: str) -> None:
    function, draw, _ = CELLS[case.cell]
    inputs = draw(case.B, case.S, case.H, case.D, dtype=case.dtype, state=True)
    expected = slstm(**inputs, backend="cpu")
    for seed in range(2):
        with forced(case.variant, order=order, landing=landing, seed=seed, multiprocessors=case.multiprocessors):
            assert_close_relative(slstm(**inputs, backend=EXECUTOR), expected, 1e-5)


# Fault: a call that shows it.
BLOCK, FLOAT = Case("block", BF16, 2, 3, 1, 16), Case("block", F32, 2, 6, 1, 16)
LONG = Case("block", BF16, 2, 7, 1, 16)
CLUSTER, SPLIT = Case("cluster", BF16, 2, 4, 1, 72), Case("grid", F32, 2, 3, 1, 130)
GRID = Case("grid", BF16, 2, 4, 1, 72)
FAULTS = {
    "resident_fwd: block reads h before all warps wrote it": BLOCK,
    "resident_fwd: block has one buffer of h": BLOCK,
    "resident_fwd: rows past the batch": FLOAT,
    "resident_fwd: x of rows that are none": FLOAT,
    "resident_fwd: rows moved before all warps are ready": BLOCK,
    "resident_fwd: the mover does not wait for x": LONG,
    "resident_fwd: the mover takes rows past the batch": BLOCK,
    "resident_fwd: x read before it has landed": FLOAT,
    "resident_fwd: one buffer of results": BLOCK,
    "resident_fwd: results written before all warps moved those before": FLOAT,
    "resident_fwd: results read before all lanes wrote them": CLUSTER,
    "resident_fwd: h is not reset": BLOCK,
    "resident_fwd: the state is not reset": BLOCK,
    "resident_fwd: h of units past the head is not cleared": Case("block", F16, 2, 3, 1, 10, cell="lstm"),
    "resident_fwd: no row ends early": Case("block", BF16, 3, 4, 1, 16),
    "resident_fwd: cluster waits for the wrong phase": CLUSTER,
    "resident_fwd: cluster does not wait for h": CLUSTER,
    "resident_fwd: cluster has one buffer of h": CLUSTER,
    "resident_fwd: cluster sends to the wrong slice": CLUSTER,
    "resident_fwd: cluster sends h of the last step": Case("cluster", BF16, 2, 4, 1, 264),
    "resident_fwd: cluster reads x before all warps have it": Case("cluster", BF16, 9, 4, 1, 72, 5),
    "resident_fwd: cluster does not send h": CLUSTER,
    "resident_fwd: sums read before all warps wrote them": SPLIT,
    "resident_fwd: grid does not mark h as absent": GRID,
    "resident_fwd: grid starts before h is marked as absent": GRID,
    "resident_fwd: grid does not wait for h": GRID,
    "resident_fwd: grid has one buffer of h": GRID,
    "resident_fwd: grid reads h before it is staged": GRID,
    "resident_fwd: grid does not send h": GRID,
}


CALLS: dict[str, Callable[[Case], None]] = {  # that show it where compare_race does not
    "resident_fwd: h of units past the head is not cleared": check_infinite_h,
    "resident_fwd: no row ends early": check_short_rows,
}


@needs_race_build
@pytest.mark.parametrize(("mutant", "case"), FAULTS.items(), ids=str)
def test_fault_is_caught(mutant: str, case: Case) -> None:
    assert missed(mutant, partial(CALLS.get(mutant, compare_race), case)) == []


def compare_race(case: Case) -> None:
    """Blocks of a grid in random order whatever the seed: in turn, none would ever be ahead of another."""
    function, draw, options = CELLS[case.cell]
    inputs = draw(case.B, case.S, case.H, case.D, dtype=case.dtype, state=True)
    reset = torch.arange(case.B * case.S).view(case.B, case.S) % 3 == 2
    order = {"order": "random"} if case.variant == "grid" else {}
    with forced(case.variant, RACE, multiprocessors=case.multiprocessors, **order):
        check(function, inputs, RACE_EXECUTOR, reset=reset, **options)


def test_every_fault_has_a_case() -> None:
    sources = ("resident_fwd_kernel.h", "resident_fwd_rows.h", "exchange.h")
    assert set().union(*(planted(f"csrc/cuda/recurrent/{source}") for source in sources)) == set(FAULTS)
