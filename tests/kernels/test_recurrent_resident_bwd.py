"""The backward scan of slstm and lstm with R on the chip, run by the host executor, against the CPU op in float64.

Both get the same saved values and final states, so that only the rounding of d raw and of the products is between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.support.executor import PLAIN, RACE, needs_race_build
from tests.support.mutants import missed, planted, simt_options
from tests.support.variants import only
from xlstm_cuda import _ops
from xlstm_cuda.testing import assert_close_relative, lstm_inputs, slstm_inputs

pytestmark = [pytest.mark.simt, needs_race_build]

# dtype, allow_tf32, error allowed
PRODUCTS: dict[str, tuple[torch.dtype, bool, float]] = {
    "bf16": (torch.bfloat16, False, 4e-3),
    "f16": (torch.float16, False, 5e-4),
    "tf32": (torch.float32, True, 1e-3),
    "tf32x3": (torch.float32, False, 1e-6),
    "f64": (torch.float64, False, 1e-14),
}
CELLS = ("slstm", "slstm_exp", "lstm")
GRADS = ("dx", "dh0", "dc0", "dn0", "dm0")


class Problem(NamedTuple):
    cell: str
    product: str
    reversed_heads: int
    inputs: tuple[Tensor | None, ...]  # of recurrent_bwd, in the dtypes of the product
    given: tuple[bool, ...] = (True,) * 5  # which gradients of h and the final state are

    def arguments(self, wide: bool = False) -> list[Any]:
        """Of the op; wide: in float64."""
        tensors = [x if i in (0, *range(5, 16)) or self.given[i] else None for i, x in enumerate(self.inputs)]
        if wide:
            tensors = [x.double() if x is not None and x.is_floating_point() else x for x in tensors]
        return [*tensors, _ops.CELLS[self.cell], self.reversed_heads, PRODUCTS[self.product][1]]


def draw(
    cell: str,
    product: str,
    B: int,
    S: int,
    H: int,
    D: int,
    *,
    state: bool = True,
    lengths: Sequence[int] | None = None,
    resets: float = 0.0,
    columns: bool = False,
    reversed_heads: int = 0,
    given: tuple[bool, ...] = (True,) * 5,
) -> Problem:
    """given: whether the gradients of h, hT, cT, nT, mT are. columns: R contiguous along `out`."""
    dtype = PRODUCTS[product][0]
    A = torch.promote_types(dtype, torch.float32)
    inputs = (lstm_inputs if cell == "lstm" else slstm_inputs)(B, S, H, D, dtype=dtype, state=state, forget_bias=0.5)
    start = inputs.get("initial_state")
    h0, c0, n0, m0 = (*start, *[None] * (4 - len(start))) if start is not None else [None] * 4
    generator = torch.Generator().manual_seed(1)
    reset = torch.rand(B, S, generator=generator).lt(resets) if resets else None
    tokens = None if lengths is None else torch.tensor(lengths)
    fixed = (inputs["R"], inputs["b"], h0, c0, n0, m0, tokens, reset, _ops.CELLS[cell], reversed_heads, False, True)
    h, hT, cT, nT, mT, saved = _ops.library("xlstm_cuda").recurrent_fwd.default(inputs["x"], *fixed)
    saved = saved.to(dtype)
    for row, length in enumerate(lengths or ()):
        saved[row, length:] = float("nan")  # nobody may read that
    grads = [torch.randn(x.shape, generator=generator) for x in (h, hT, cT, nT, mT)]
    dh = grads[0].to(dtype)
    dhT, dcT, dnT, dmT = (x.to(dtype).to(A) if x.numel() or cell != "lstm" else None for x in grads[1:])
    R = inputs["R"].mT.contiguous().mT if columns else inputs["R"]
    values = (dh if given[0] else torch.zeros_like(dh), dhT, dcT, dnT, dmT, R, h, h0, c0, n0, m0, cT, nT, saved)
    return Problem(cell, product, reversed_heads, (*values, tokens, reset), given)


def run(p: Problem, variant: str, namespace: str = PLAIN, **options: Any) -> dict[str, Tensor]:
    ops = _ops.library(namespace)
    with only(variant, namespace), simt_options(namespace, **options):
        dx, _, _, *state = ops.recurrent_bwd.default(*p.arguments())
    return dict(zip(GRADS, (dx, *state), strict=True))


def check(p: Problem, variant: str, namespace: str = PLAIN, **options: Any) -> dict[str, Tensor]:
    actual = run(p, variant, namespace, **options)
    dx, _, _, *state = _ops.library("xlstm_cuda").recurrent_bwd.default(*p.arguments(wide=True))
    for name, expected in zip(GRADS, (dx, *state), strict=True):
        assert actual[name].isfinite().all(), name
        assert_close_relative(actual[name], expected, PRODUCTS[p.product][2], name)
    return actual


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("product", PRODUCTS)
def test_block(cell: str, product: str) -> None:
    for B, H, D, columns in [(9, 3, 1, False), (3, 2, 7, True), (2, 1, 24, False), (9, 1, 64, True)]:
        check(draw(cell, product, B, 5, H, D, columns=columns), "block")


# Variant, product, (B, S, H, D), multiprocessors of the device: few of them, and a team has several tiles.
SHAPES: list[tuple[str, str, tuple[int, int, int, int], int]] = [
    ("block", "bf16", (3, 5, 1, 72), 132),
    ("block", "f16", (17, 4, 1, 128), 2),
    ("block", "tf32x3", (17, 4, 1, 8), 2),
    ("cluster", "bf16", (1, 4, 2, 72), 132),
    ("cluster", "bf16", (2, 3, 1, 264), 132),  # 32 units a block
    ("cluster", "f16", (9, 4, 1, 136), 3),
    ("cluster", "tf32", (3, 3, 1, 128), 132),
    ("cluster", "tf32x3", (3, 3, 1, 136), 132),  # 32 units
    ("cluster", "bf16", (17, 3, 1, 200), 8),
    # What no plan takes by itself.
    ("cluster units=32", "bf16", (9, 3, 1, 40), 2),
    ("grid units=32 teams=1", "f16", (17, 3, 1, 72), 132),
    ("grid units=16", "tf32x3", (3, 3, 2, 24), 132),
    ("grid", "bf16", (9, 4, 1, 200), 4),
    ("grid", "f16", (1, 4, 2, 72), 132),
    ("grid", "tf32x3", (17, 3, 1, 72), 2),
    ("grid", "tf32", (3, 3, 1, 136), 132),  # 32 units
    ("grid", "tf32x3", (2, 3, 1, 264), 132),  # 16 units
    ("grid", "bf16", (2, 3, 1, 520), 132),  # the same
    ("grid", "tf32x3", (1, 3, 1, 72), 132),
    # Rows that are no whole packets: d raw goes through a workspace.
    ("grid", "bf16", (9, 3, 2, 75), 132),
    ("grid", "tf32", (9, 3, 1, 70), 2),
    # In several launches: all heads find no room at once.
    ("grid", "tf32", (3, 3, 3, 72), 5),
    ("grid units=16", "bf16", (9, 3, 5, 40), 7),
]


@pytest.mark.parametrize(("variant", "product", "shape", "multiprocessors"), SHAPES, ids=str)
def test_teams(variant: str, product: str, shape: tuple[int, int, int, int], multiprocessors: int) -> None:
    check(draw("slstm", product, *shape), variant, multiprocessors=multiprocessors)
    check(draw("lstm", product, *shape, columns=True), variant, RACE, multiprocessors=multiprocessors)


@pytest.mark.parametrize(
    ("product", "D", "shift"),
    [
        *[("bf16", 64, 0), ("bf16", 64, 2), ("f16", 64, 1), ("bf16", 74, 0), ("f16", 7, 0)],
        *[("tf32x3", 64, 1), ("tf32x3", 7, 0), ("f64", 24, 1), ("f64", 7, 0)],
    ],
    ids=str,
)
def test_rows_of_all_pieces(product: str, D: int, shift: int) -> None:
    """Vectors, words and elements: dh lies so many elements past a vector. Both directions, short rows of a tile."""
    p = draw("slstm", product, 3, 5, 2, D, lengths=(5, 3, 0), reversed_heads=1)
    dh = p.inputs[0]
    assert dh is not None
    moved = torch.cat([torch.zeros(shift, dtype=dh.dtype), dh.flatten()])[shift:].view_as(dh)
    check(p._replace(inputs=(moved, *p.inputs[1:])), "block teams=1", RACE)


VARIANTS = pytest.mark.parametrize(
    ("variant", "product", "D"),
    [("block", "f64", 5), ("block", "bf16", 72), ("cluster", "tf32x3", 72), ("grid", "tf32x3", 136)],
    ids=str,
)
LENGTHS = (6, 0, 2, 6, 1, 5, 6, 3, 4)


@VARIANTS
@pytest.mark.parametrize("cell", CELLS)
def test_rows_of_all_kinds(variant: str, product: str, D: int, cell: str) -> None:
    """Lengths, resets and heads of both directions. A row without tokens hands the gradients through, to the bit."""
    p = draw(cell, product, 9, 6, 2, D, lengths=LENGTHS, resets=0.3, reversed_heads=1)
    actual = check(p, variant, multiprocessors=10 if variant == "grid" else 4)
    for name, given in zip(GRADS[1:], p.arguments()[1:5], strict=True):
        if given is not None:
            assert torch.equal(actual[name][1], given[1])
    for row, length in enumerate(LENGTHS):
        assert not actual["dx"][row, length:].any()


@VARIANTS
def test_calls_with_little(variant: str, product: str, D: int) -> None:
    """No state, no tokens, and gradients of some outputs only."""
    for i in range(5):
        check(draw("slstm", product, 2, 3, 1, D, given=tuple(i == j for j in range(5))), variant)
    check(draw("slstm", product, 2, 3, 1, D, state=False, resets=0.3), variant)
    check(draw("lstm", product, 2, 3, 1, D, state=False, given=(True, *[False] * 4)), variant)
    check(draw("slstm_exp", product, 2, 0, 1, D), variant)


PROTOCOL = [
    ("block", "bf16", (9, 4, 1, 16), 1),
    ("cluster", "bf16", (9, 5, 1, 136), 3),
    ("grid", "bf16", (9, 5, 1, 72), 2),
]


@pytest.mark.parametrize(("variant", "product", "shape", "multiprocessors"), PROTOCOL, ids=str)
def test_any_order_gives_the_same_bits(
    variant: str, product: str, shape: tuple[int, int, int, int], multiprocessors: int
) -> None:
    p = draw("slstm", product, *shape, resets=0.2)
    expected = check(p, variant, RACE, multiprocessors=multiprocessors)
    for seed in range(2, 6):
        landing = ("early", "late", "random")[seed % 3]
        actual = run(p, variant, RACE, multiprocessors=multiprocessors, seed=seed, landing=landing)
        assert all(torch.equal(actual[name], expected[name]) for name in GRADS)


# Fault: variants that show it, with the shape (B, S, H, D).
FAULTS: dict[str, dict[str, tuple[int, int, int, int]]] = {
    "resident_bwd: block reads sums before they are written": {"block": (1, 2, 1, 8)},
    "resident_bwd: cluster waits for the other parity": {"cluster": (1, 2, 1, 72)},
    "resident_bwd: cluster reads sums before they are there": {"cluster": (1, 2, 1, 72)},
    "resident_bwd: cluster has one buffer instead of two": {"cluster": (1, 4, 1, 72)},
    "resident_bwd: cluster does not send sums": {"cluster": (1, 2, 1, 72)},
    "resident_bwd: grid does not mark d raw as absent": {"grid": (1, 3, 1, 72)},
    "resident_bwd: grid starts before d raw is marked as absent": {"grid": (1, 2, 1, 72)},
    "resident_bwd: grid does not wait for d raw": {"grid": (1, 6, 1, 200)},
    "resident_bwd: grid does not send d raw": {"grid": (1, 2, 1, 72)},
    "resident_bwd: sums of warps read before they are there": {"grid": (1, 3, 1, 72)},
    "resident_bwd: last sums written over": {"grid teams=1": (9, 1, 1, 72), "cluster teams=1": (9, 1, 1, 264)},
    "resident_bwd: d raw read before it is there": {
        "block": (1, 1, 1, 8),
        "cluster": (1, 1, 1, 72),
        "grid": (1, 2, 1, 72),
    },
    "resident_bwd: d raw written over before it is read": {"grid teams=1": (9, 1, 1, 72)},
    "resident_bwd: one buffer of d raw instead of two": {"cluster": (1, 3, 1, 136)},
    "resident_bwd: a block leaves before the last message": {"block": (1, 2, 1, 8), "cluster": (1, 2, 1, 72)},
    "resident_bwd: sums sent to another block": {"cluster": (1, 2, 1, 72)},
    "resident_bwd: the last source left out": {
        "block": (1, 2, 1, 8),
        "cluster": (1, 2, 1, 72),
        "grid": (1, 2, 1, 136),
    },
    "resident_bwd: sums of helpers read before they are there": {"cluster": (1, 2, 1, 264)},
    "resident_bwd: inputs read before they have landed": {"block": (2, 3, 1, 8), "cluster": (2, 3, 1, 72)},
    "resident_bwd: reset ignored": {"block": (1, 3, 1, 8)},
    "resident_bwd: rows past the batch": {"cluster": (3, 1, 1, 72)},
    "resident_bwd: rows moved before all warps are ready": {"block": (1, 2, 1, 8)},
    "resident_bwd: the mover does not wait for inputs": {"block": (2, 3, 1, 8)},
    "resident_bwd: the mover takes rows past the batch": {"block": (3, 1, 1, 8)},
    "resident_bwd: no row ends early": {"block": (2, 4, 1, 8)},
}
CASES = [(name, variant, shape) for name, calls in FAULTS.items() for variant, shape in calls.items()]


@pytest.mark.parametrize(("mutant", "variant", "shape"), CASES, ids=str)
def test_fault_is_caught(mutant: str, variant: str, shape: tuple[int, int, int, int]) -> None:
    ends_early: dict[str, Any] = {"lengths": (4, 2), "reversed_heads": 1} if "ends early" in mutant else {}
    p = draw("slstm", "bf16", *shape, resets=0.5 if "reset" in mutant else 0, **ends_early)
    assert missed(mutant, partial(check_in_disorder, p, variant)) == []


def check_in_disorder(p: Any, variant: str) -> None:
    """Blocks of a grid in random order whatever the seed: in turn, none would ever be ahead of another."""
    if variant.startswith("grid"):
        _ops.library(RACE).simt_set("order", "random")
    check(p, variant, RACE)


def test_every_fault_has_a_case() -> None:
    sources = ("inbox.h", "dh_sums.h", "dh_by_parts.h", "dh_by_gather.h")
    sources += ("resident_bwd_kernel.h", "resident_bwd_rows.h")
    assert set.union(*(planted(f"csrc/cuda/recurrent/{name}") for name in sources)) == set(FAULTS)
