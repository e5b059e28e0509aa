"""bench predict: how the work of small cases grows, and what it would take on a device."""

from __future__ import annotations

from collections import Counter

import pytest

from bench import machine_code, predict
from bench.__main__ import main
from bench.counters import counted, mlstm_of
from tests.support.variants import requested
from tools.sass.assemble import program
from tools.sass.model import PIPES
from xlstm_cuda import _ops


def has(name: str) -> bool:
    try:
        return bool(program(name))
    except FileNotFoundError:
        return False


needs_ptx = pytest.mark.skipif(
    not _ops.available(_ops.PTX_NAMESPACE) or not (has("ptxas") and has("nvdisasm")),
    reason="make ptx builds it, make sass brings nvdisasm",
)


def test_a_block_for_each_chunk() -> None:
    two, four = Counter(blocks=8, slots=80, chain=10, tensor=20), Counter(blocks=16, slots=160, chain=10, tensor=40)
    work = predict.grown("mlstm outputs", two, four, chunk_size=64, seqlen=640, rows=3)
    assert (work["blocks"], work["slots"], work["tensor"]) == (3 * 40, 3 * 400, 3 * 100)
    assert work["chain"] == 10  # of one block, however many there are


def test_a_block_that_walks_through_all_chunks() -> None:
    two, four = Counter(blocks=4, slots=80, chain=30), Counter(blocks=4, slots=160, chain=50)
    work = predict.grown("mlstm states", two, four, chunk_size=64, seqlen=640, rows=100)
    assert (work["blocks"], work["slots"], work["chain"]) == (400, 100 * 400, 110)


def test_few_blocks_walk_segments() -> None:
    """100 chunks in 15 segments: 29/15 of the work."""
    two, four = Counter(blocks=4, slots=80, chain=20), Counter(blocks=4, slots=160, chain=40)
    work = predict.grown("mlstm states", two, four, chunk_size=64, seqlen=6400, rows=1, segments=15)
    assert work["slots"] == pytest.approx(4000 * 29 / 15) and work["chain"] == pytest.approx(1000 * 2 / 15)


def test_gates_go_through_tiles_of_tokens() -> None:
    small = Counter(blocks=1, slots=7, chain=7)
    work = predict.grown("mlstm gates", small, small, chunk_size=64, seqlen=3 * predict.GATE_TILE, rows=5)
    assert (work["chain"], work["slots"]) == (21, 105)


def test_what_limits_a_kernel() -> None:
    clock, sms = predict.CLOCK, predict.MULTIPROCESSORS
    few = predict.times_of(Counter(slots=10, chain=clock, HBM=predict.HBM_BYTES / predict.SECTOR))
    assert few["model"] == few["HBM"] == 1  # a single block that takes a second
    many = predict.times_of(Counter(slots=2 * sms * clock, chain=1, tensor=4 * sms * clock, shared=sms * clock))
    assert (many["model"], many["tensor"], many["shared"], many["L2"]) == (2, 1, 1, 0)
    assert predict.total({"a": few, "b": many}) == 3
    assert "| b | 2000.000 |" in predict.report("two kernels", {"b": many})


HMMA = 4 * 64**3 / (16 * 8 * 16) * PIPES["HMMA"][1]
HGMMA = (
    4 * 64**3 / (64 * 64 * 16) * 4 * 64 / 2
)  # each of four warps has it, and its tensor core is taken for N / 2 cycles


@needs_ptx
@pytest.mark.parametrize(("way", "cycles", "error"), [("passes mma", HMMA, 1e-6), ("walk", HGMMA, 0.05)])
def test_the_products_of_a_chunk(way: str, cycles: float, error: float) -> None:
    """Of one head of (64, 64) in chunks of 64, forward: K^T V, Q C, Q K^T and P V, 64 x 64 x 64 each.

    Sizes of wgmma are in the machine code alone, where what ptxas moves out of a loop blurs how often it is executed.
    """
    files = machine_code.sources()
    with requested(_ops.library(_ops.PTX_NAMESPACE).mlstm_variant, way):
        two, four = (
            sum(
                (predict.work_of(counts, files) for counts in counted(mlstm_of(64, 64, n * 64, 64, False)).values()),
                Counter(),
            )
            for n in (2, 4)
        )
    assert (four["tensor"] - two["tensor"]) / 2 == pytest.approx(cycles, rel=error)


def test_scans_of_the_committed_table() -> None:
    table = machine_code.read()["cases"]
    assert "slstm 64, block" in predict.scans(table)
    assert predict.step_cycles(table, "slstm 64, block", "fwd") and not predict.step_cycles(
        table, "slstm_step 64", "fwd"
    )


@pytest.mark.parametrize("words", [["--heads", "5"], ["--seqlen", "1000"]])
def test_requests_that_cannot_be(words: list[str]) -> None:
    assert main(["predict", *words]) == 2
