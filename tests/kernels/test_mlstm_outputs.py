"""h, dq, dk and dv of the chunkwise mLSTM kernels, given the states at the borders of chunks, on the host executor.

The reference is the recurrence, token by token in float64; its gradients are autograd's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.executor import EXECUTOR, PLAIN, RACE, needs_race_build
from tests.support.mlstm_plain import Plain, Problem, in_whole_pieces, normaliser_factors, packed, plain, problem
from tests.support.mutants import caught, planted, simt_options
from tests.support.variants import requested
from xlstm_cuda import _ops, mlstm
from xlstm_cuda.testing import mlstm_inputs

SOURCES = [
    f"csrc/cuda/mlstm_chunkwise/{name}.h" for name in ("outputs_block", "outputs_kernel", "outputs_rows", "tile")
]
SOURCES += [f"csrc/cuda/mlstm_chunkwise/{name}" for name in ("hopper_tiles.h", "outputs_wgmma.cu")]

pytestmark = [pytest.mark.simt, needs_race_build]

OUTPUTS = ("h", "dq", "dk", "dv")
DTYPES = {"f64": torch.float64, "tf32x3": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {"f64": 1e-11, "tf32x3": 2e-6, "tf32": 1e-3, "bf16": 4e-3}
# Products of mma; "wgmma": the kernel of compute capability 9.0, whose rows have to begin at multiples of 16 bytes.
DTYPES["wgmma"], TOLERANCE["wgmma"] = DTYPES["bf16"], TOLERANCE["bf16"]
MMA, WGMMA = 0, 1
products = pytest.mark.parametrize("product", DTYPES)
mma_products = pytest.mark.parametrize("product", [product for product in DTYPES if product != "wgmma"])


@dataclass
class Run:
    """A problem and all that the recurrence gives; the kernels are handed its states at the borders of chunks."""

    p: Problem
    x: Plain

    @classmethod
    def of(cls, p: Problem, product: str) -> Run:
        p = p.in_dtype(DTYPES[product])
        return cls(p, plain(p))

    def call(self, output: str, product: str, namespace: str = PLAIN, zero: bool = False) -> tuple[Tensor, Tensor]:
        """The op's two results. zero: the states of first (h, dq) or last (dk, dv) chunks are said to be zero."""
        p, x, wide = self.p, self.x, torch.float64 if product == "f64" else torch.float32
        wgmma = product == "wgmma"
        X, Y, Z = {"h": (p.q, p.k, p.v), "dq": (p.dh, p.v, p.k), "dk": (p.v, p.dh, p.q), "dv": (p.k, p.q, p.dh)}[output]
        states, normalisers = (x.C, x.n) if output in ("h", "dq") else (x.dC, x.dn)
        iota, rho, _ = normaliser_factors(p, x)
        return _ops.library(namespace).mlstm_outputs(
            _ops.OUTPUTS[output],
            _ops.PRODUCTS["bf16" if wgmma else product],
            *(map(in_whole_pieces, (X, Y, Z)) if wgmma else (X, Y, Z)),
            *(p.i, p.f),
            None if p.initial is None else p.initial[2],
            *(p.cu_seqlens, p.reset),
            *(states.to(DTYPES[product]), normalisers.to(wide)),
            *((None, None) if output == "h" else (iota.to(wide), rho.to(wide))),
            {"dq": p.q, "dk": p.k}.get(output),
            *(p.sigmoid_gate, p.normalize, p.scale, p.eps, p.chunk_size, zero),
            WGMMA if wgmma else MMA,
        )

    def check(self, output: str, product: str, namespace: str = PLAIN) -> None:
        out, per_token = self.call(output, product, namespace)
        tolerance, expected = TOLERANCE[product], getattr(self.x, output)
        assert out.dtype == self.p.q.dtype and error(out, expected) < tolerance, (output, error(out, expected))
        if output == "h":
            assert error(per_token[:, :, 0], self.x.r) < tolerance
        if output in ("dq", "dk"):
            factor = getattr(self.p, output[1]).double()
            sizes = factor.norm(dim=-1) * expected.norm(dim=-1)
            assert error(per_token.sum(2), (factor * expected).sum(-1), sizes) < tolerance


def error(actual: Tensor, expected: Tensor, scale: Tensor | None = None) -> float:
    """Relative, Frobenius; infinite where there is a NaN."""
    size = (expected if scale is None else scale).norm().clamp_min(1e-300)
    difference = ((actual.double() - expected).norm() / size).item()
    return difference if difference == difference else float("inf")


def check_all(p: Problem, product: str, namespace: str = PLAIN) -> None:
    run = Run.of(p, product)
    for output in OUTPUTS:
        if product == "wgmma" and p.v.shape[-1] % 8 != 0:  # nor can TMA read rows of states
            with pytest.raises(RuntimeError, match="CUDA error 1"):
                run.call(output, product, namespace)
        else:
            run.check(output, product, namespace)


def case(
    S: int = 40,
    *,
    B: int = 1,
    H: int = 1,
    Dqk: int = 16,
    Dv: int = 24,
    resets: tuple[int, ...] = (),
    zero_forgets: tuple[int, ...] = (),
    silent: tuple[int, ...] = (),
    **options: Any,
) -> Problem:
    """resets: of the last batch row; silent: tokens with i = -inf. eps keeps h well-conditioned where q.n vanishes."""
    p = problem(B, H, S, Dqk, Dv, **{"eps": 1.0, "scale": 0.3, **options})
    p.f[:, :, list(zero_forgets)] = -torch.inf
    p.i[:, :, list(silent)] = -torch.inf
    if resets:
        p.reset = torch.zeros(B, S, dtype=torch.bool)
        p.reset[-1, list(resets)] = True
    return p


SHAPES = {
    "1": case(1, B=2, H=3, Dqk=5, Dv=7),
    "15": case(15, Dqk=16, Dv=33),
    "16": case(16, Dqk=65, Dv=5, chunk_size=256),
    "17": case(17, Dqk=7, Dv=16, chunk_size=128),
    "63": case(63, Dqk=33, Dv=64),
    "64": case(64, B=2, Dqk=64, Dv=16, chunk_size=256),
    "65": case(65, H=2, Dqk=16, Dv=65),
    "130": case(130, Dqk=64, Dv=128, chunk_size=128),
    "257": case(257, Dqk=20, Dv=36, chunk_size=256),
    "257 in 64s": case(257, Dqk=16, Dv=8),
    "wide v": case(20, Dqk=24, Dv=256),
    "wide qk": case(20, Dqk=256, Dv=24),
    "three column tiles and more": case(20, Dqk=320, Dv=321, scale=0.1),
}


@products
@pytest.mark.parametrize("p", SHAPES.values(), ids=SHAPES.keys())
def test_shapes(p: Problem, product: str) -> None:
    check_all(p, product)


CASES = {
    "sigmoid": case(70, sigmoid_gate=True),
    "sigmoid, not normalised": case(70, sigmoid_gate=True, normalize=False),
    "no initial state": case(70).with_(initial=None),
    "resets": case(140, B=2, chunk_size=128, resets=(0, 5, 64, 65, 139)),
    "zero forget gates": case(140, chunk_size=128, zero_forgets=(3, 64, 100), silent=(7, 64)),
    "sequences": case(150, H=2, cu_seqlens=packed(0, 1, 69, 1, 0, 79, 0), resets=(20, 71)),
    "sequences, sigmoid": case(70, cu_seqlens=packed(30, 40), sigmoid_gate=True, chunk_size=256),
    "one long sequence": case(140, cu_seqlens=packed(140), chunk_size=128),
    "negative scale": case(70, seed=5, scale=-0.5),
}


@products
@pytest.mark.parametrize("p", CASES.values(), ids=CASES.keys())
def test_cases(p: Problem, product: str) -> None:
    check_all(p, product)


@pytest.mark.parametrize("eps", [0.0, 1e-6])
@pytest.mark.parametrize("sigmoid_gate", [False, True])
def test_denominators(sigmoid_gate: bool, eps: float) -> None:
    check_all(case(100, eps=eps, sigmoid_gate=sigmoid_gate), "f64")


@mma_products
def test_X_comes_with_every_step_where_it_does_not_fit(product: str) -> None:
    tall, wide = (
        Run.of(case(70, Dqk=Dqk, Dv=Dv, chunk_size=128, scale=0.1), product) for Dqk, Dv in ((320, 20), (20, 330))
    )
    with simt_options(PLAIN, max_shared_bytes=66_000):  # all of X would be 46,080 bytes and more
        for output, run in (("h", tall), ("dv", tall), ("dq", wide), ("dk", wide)):
            run.check(output, product)
    with simt_options(PLAIN, max_shared_bytes=40_000), pytest.raises(RuntimeError, match="shared memory"):
        tall.call("h", product)


def with_layout(run: Run, layout: str) -> Run:
    """The same values of q, k, v, dh, elsewhere in memory."""

    def moved(x: Tensor) -> Tensor:
        B, H, S, D = x.shape
        if layout == "tokens first":
            return x.transpose(1, 2).contiguous().transpose(1, 2)
        shift, after = {"misaligned": (1, 0), "NaN after": (0, 8), "wide rows": (0, 0)}[layout]
        pad = {"wide rows": 5}.get(layout, 0)
        storage = torch.full((shift + B * H * (S + after) * (D + pad),), torch.nan, dtype=x.dtype)
        view = storage[shift:].view(B, H, S + after, D + pad)[:, :, :S, :D]
        view.copy_(x)
        return view

    p = run.p
    return Run(p.with_(q=moved(p.q), k=moved(p.k), v=moved(p.v), dh=moved(p.dh)), run.x)


@products
@pytest.mark.parametrize("layout", ["tokens first", "misaligned", "NaN after", "wide rows"])
def test_layouts(layout: str, product: str) -> None:
    run = Run.of(case(70, B=2, H=2, Dqk=16, Dv=40), product)
    for output in OUTPUTS:
        for actual, same in zip(with_layout(run, layout).call(output, product), run.call(output, product), strict=True):
            assert torch.equal(actual, same)


@pytest.mark.parametrize("layout", ["tokens first", "misaligned"])
def test_fp16_data(layout: str) -> None:
    p = case(70, Dqk=36, Dv=65).in_dtype(torch.float16)
    run = with_layout(Run(p, plain(p)), layout)
    for output in OUTPUTS:
        run.check(output, "tf32")


@products
def test_nan_stays_in_its_sequence(product: str) -> None:
    run = Run.of(case(150, cu_seqlens=packed(40, 20, 90)), product)
    foreign = {name: getattr(run.p, name).clone() for name in ("q", "k", "v", "dh", "i", "f")}
    for x in foreign.values():
        x[:, :, 40:60] = torch.nan
    for output in OUTPUTS:
        clean = run.call(output, product)[0]
        dirty = Run(run.p.with_(**foreign), run.x).call(output, product)[0]
        for tokens in (slice(None, 40), slice(60, None)):
            # TMA brings tokens of the next sequence too: what they spoil is computed again, and rounds differently
            limit = TOLERANCE[product] if product == "wgmma" else 0
            assert error(dirty[:, :, tokens], clean[:, :, tokens].double()) <= limit
        assert dirty[:, :, 40:60].isnan().all()


def with_states(run: Run, value: float, entering: list[int], leaving: list[int]) -> Run:
    """`value` in the states that enter these slots, and in the gradients of those that leave these."""
    changed = {name: getattr(run.x, name).clone() for name in ("C", "n", "dC", "dn")}
    for name, slots in (("C", entering), ("n", entering), ("dC", leaving), ("dn", leaving)):
        changed[name][:, :, slots] = value
    return Run(run.p, replace(run.x, **changed))


@products
def test_nan_states_stay_behind_resets(product: str) -> None:
    run = Run.of(case(140, resets=(50, 64)), product)
    dirty = with_states(run, torch.nan, entering=[1], leaving=[0])
    for output in OUTPUTS:
        tokens = slice(64, None) if output in ("h", "dq") else slice(None, 50)
        assert torch.equal(dirty.call(output, product)[0][:, :, tokens], run.call(output, product)[0][:, :, tokens])


@products
@pytest.mark.parametrize("cu_seqlens", [None, (0, 20, 100)])
def test_zero_outer_states_are_not_read(cu_seqlens: tuple[int, ...] | None, product: str) -> None:
    cu = None if cu_seqlens is None else torch.tensor(cu_seqlens)
    run = Run.of(case(100, cu_seqlens=cu).with_(initial=None), product)
    firsts, lasts = ([0], [1]) if cu is None else ([0, 1], [0, 2])
    zero, absent = (with_states(run, value, firsts, lasts) for value in (0.0, torch.nan))
    for output in OUTPUTS:
        for actual, same in zip(absent.call(output, product, zero=True), zero.call(output, product), strict=True):
            assert error(actual, same.double()) < 1e-6


WITH_WGMMA = {"dtype": torch.bfloat16, "S": 130, "D": 16, "chunk_size": None, "capability": 90}
WITHOUT = [{"dtype": torch.float16}, {"dtype": torch.float32}, {"S": 64}, {"D": 12}, {"chunk_size": 64}]
WITHOUT += [{"capability": 80}, {"capability": 100}]


@pytest.mark.parametrize("change", [{}, *WITHOUT], ids=str)
def test_which_kernel_a_call_takes(change: dict[str, Any]) -> None:
    """In two passes on compute capability 9.0: by wgmma, where TMA can read the rows and chunks have two tiles."""
    case = WITH_WGMMA | change
    inputs = mlstm_inputs(1, 1, case["S"], case["D"], case["D"], dtype=case["dtype"], requires_grad=True)
    ops = _ops.library(PLAIN)
    with simt_options(PLAIN, compute_capability=case["capability"]), requested(ops.mlstm_variant, "passes"):
        ops.simt_set("forget", "launches")
        mlstm(**inputs, chunk_size=case["chunk_size"], backend=EXECUTOR).sum().backward()
    kernels = {line.split("\t")[0] for line in ops.simt_shared_memory().splitlines()}
    assert ("mlstm outputs wgmma" in kernels) == (change == {}) != ("mlstm outputs" in kernels)


def test_nothing_to_do() -> None:
    for p in (case(B=0), case(0), case(0, cu_seqlens=packed(0, 0))):
        for output in OUTPUTS:
            assert Run.of(p, "f64").call(output, "f64")[0].numel() == 0


@products
def test_results_do_not_depend_on_the_order_of_threads(product: str) -> None:
    run = Run.of(case(70), product)
    for output in OUTPUTS:
        results = []
        for seed in (0, 1, 7):
            with simt_options(PLAIN, seed=seed):
                results.append(run.call(output, product))
        assert all(torch.equal(x, y) for r in results[1:] for x, y in zip(r, results[0], strict=True))


@pytest.mark.parametrize("product", ["bf16", "tf32"])
def test_ldmatrix_meets_no_bank_conflicts(product: str) -> None:
    run = Run.of(case(70), product)
    conflicts = _ops.library(PLAIN).simt_count("bank_conflicts")
    for output in OUTPUTS:
        run.call(output, product)
    assert _ops.library(PLAIN).simt_count("bank_conflicts") == conflicts


@mma_products
@pytest.mark.parametrize("seed", [1, 2])
def test_no_races(product: str, seed: int) -> None:
    with simt_options(RACE, seed=seed):
        check_all(case(70, Dqk=20, Dv=70, chunk_size=128), product, RACE)
    with simt_options(RACE, seed=seed, max_shared_bytes=66_000):
        Run.of(case(10, Dqk=320, Dv=16), product).check("h", product, RACE)


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_no_races_with_wgmma(seed: int) -> None:
    """The ring goes round; two warpgroups and one; two column tiles; rows that see some of the tiles."""
    with simt_options(RACE, seed=seed):
        check_all(case(200, Dqk=20, Dv=72, chunk_size=256, resets=(70,)), "wgmma", RACE)
        check_all(case(130, Dqk=264, Dv=40, chunk_size=128, scale=0.1), "wgmma", RACE)
        check_all(case(100, Dqk=40, Dv=136, cu_seqlens=packed(30, 70)), "wgmma", RACE)
    with simt_options(RACE, seed=seed, max_shared_bytes=126_000):  # two stages
        check_all(case(150, Dqk=136, Dv=136, chunk_size=256, scale=0.1), "wgmma", RACE)


one_tile, two_tiles, four_tiles = case(), case(100, chunk_size=128), case(256, Dqk=72, chunk_size=256)
FAULTS: dict[str, tuple[str, str, Problem]] = {
    "mlstm_outputs: one group too few is waited for": ("tf32", "h", two_tiles),
    "mlstm_outputs: no barrier before a step": ("bf16", "dk", two_tiles),
    "mlstm_outputs: a stage is filled while it is read": ("bf16", "dq", two_tiles),
    "mlstm_outputs: one buffer of column vectors": ("bf16", "dv", two_tiles),
    "mlstm_outputs: a token does not see itself": ("f64", "dk", one_tile),
    "mlstm_outputs: rows of another warp": ("f64", "dv", one_tile),
    "mlstm_outputs: tokens past the chunk are read": ("f64", "h", one_tile),
    "tile: transposed B in the order of A": ("tf32", "h", one_tile),
    "mlstm_outputs_wgmma: a stage is filled while it is read": ("wgmma", "dk", four_tiles),
    "mlstm_outputs_wgmma: a slab is not waited for": ("wgmma", "h", two_tiles),
    "mlstm_outputs_wgmma: a stage is read before it is filled": ("wgmma", "dq", two_tiles),
    "mlstm_outputs_wgmma: a stage is given back before it is read": ("wgmma", "dv", four_tiles),
    "mlstm_outputs_wgmma: rows of another warpgroup": ("wgmma", "h", two_tiles),
}


def test_every_planted_fault_is_tested() -> None:
    assert set.union(*map(planted, SOURCES)) == set(FAULTS)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault: str, seed: int) -> None:
    product, output, p = FAULTS[fault]
    run = Run.of(p, product)
    run.check(output, product, RACE)
    assert caught(fault, seed, lambda: run.check(output, product, RACE))
