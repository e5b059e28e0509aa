"""h, dq, dk and dv of the chunkwise mLSTM kernels, given the states at the borders of chunks, on the host executor.

The reference is the recurrence, token by token in float64; its gradients are autograd's.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.mutants import caught, planted, simt_options
from xlstm_cuda import _ops

PLAIN, RACE = _ops.SIMT_NAMESPACE, _ops.RACE_NAMESPACE
SOURCES = [f"csrc/cuda/mlstm_chunkwise/{name}.h" for name in ("outputs_block", "outputs_kernel", "tile")]

pytestmark = [pytest.mark.simt, pytest.mark.skipif(not _ops.available(RACE), reason="make simt builds it")]

OUTPUTS = ("h", "dq", "dk", "dv")
DTYPES = {"f64": torch.float64, "tf32x3": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {"f64": 1e-11, "tf32x3": 2e-6, "tf32": 1e-3, "bf16": 4e-3}
products = pytest.mark.parametrize("product", DTYPES)


@dataclass(frozen=True)
class Case:
    """Shapes and options of a call; chunk_size is that of the kernels."""

    B: int = 1
    H: int = 1
    S: int = 40
    Dqk: int = 16
    Dv: int = 24
    chunk_size: int = 64
    dtype: torch.dtype = torch.float64
    cu_seqlens: tuple[int, ...] | None = None
    resets: tuple[int, ...] = ()  # of the last batch row
    hard_forgets: tuple[int, ...] = ()  # tokens with f = -inf
    silent: tuple[int, ...] = ()  # tokens with i = -inf
    initial_state: bool = True
    sigmoid_gate: bool = False
    normalize: bool = True
    eps: float = 1.0  # keeps h well-conditioned where q.n nearly vanishes
    scale: float = 0.3
    seed: int = 0

    @property
    def options(self) -> dict[str, Any]:
        return {"sigmoid_gate": self.sigmoid_gate, "normalize": self.normalize, "scale": self.scale, "eps": self.eps}


@dataclass
class Problem:
    """Inputs of the kernels and what they should give, float64 except for q, k, v, dh."""

    case: Case
    q: Tensor
    k: Tensor
    v: Tensor
    dh: Tensor
    i: Tensor
    f: Tensor
    m0: Tensor | None
    reset: Tensor | None
    cu_seqlens: Tensor | None
    expected: dict[str, Tensor] = field(default_factory=dict)  # h, r, dq, dk, dv
    C_in: Tensor = field(default_factory=lambda: torch.empty(0))  # (B, H, slots, Dqk, Dv)
    n_in: Tensor = field(default_factory=lambda: torch.empty(0))
    dC_out: Tensor = field(default_factory=lambda: torch.empty(0))
    dn_out: Tensor = field(default_factory=lambda: torch.empty(0))
    iota: Tensor = field(default_factory=lambda: torch.empty(0))
    rho: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass
class Walk:
    """One sequence of one batch row, (H, ...): what every token and every chunk gives."""

    h: list[Tensor] = field(default_factory=list)
    r: list[Tensor] = field(default_factory=list)
    floor: list[Tensor] = field(default_factory=list)
    den: list[Tensor] = field(default_factory=list)
    C_in: list[Tensor] = field(default_factory=list)
    n_in: list[Tensor] = field(default_factory=list)
    C_final: Tensor | None = None
    n_final: Tensor | None = None


def walk(case: Case, q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, reset: Tensor, state: Any) -> Walk:
    """The recurrence over (H, S, D). C and n are copied at the borders of chunks, to take gradients there."""
    out = Walk()
    C, n, m = state
    m = torch.zeros_like(m) if case.sigmoid_gate else m
    log_f = torch.nn.functional.logsigmoid(f)
    log_i = torch.nn.functional.logsigmoid(i) if case.sigmoid_gate else i
    for t in range(q.shape[1]):
        if t % case.chunk_size == 0:
            C, n = C.clone(), n.clone()
            out.C_in.append(C)
            out.n_in.append(n)
        if reset[t]:
            C, n, m = torch.zeros_like(C), torch.zeros_like(n), torch.zeros_like(m)
        m_next = (
            torch.zeros_like(m) if case.sigmoid_gate else torch.maximum(log_f[:, t] + m, log_i[:, t]).clamp_min(-1e30)
        )
        forget, write = (log_f[:, t] + m - m_next).exp(), (log_i[:, t] - m_next).exp()
        m = m_next
        C = forget[:, None, None] * C + write[:, None, None] * k[:, t, :, None] * v[:, t, None, :]
        n = forget[:, None] * n + write[:, None] * k[:, t]
        query = case.scale * q[:, t]
        r = (query * n).sum(-1)
        floor = torch.ones_like(m) if case.sigmoid_gate else (-m).exp()
        den = torch.maximum(r.abs(), floor) + case.eps if case.normalize else torch.ones_like(r)
        out.h.append((query[:, :, None] * C).sum(1) / den[:, None])
        for values, value in ((out.r, r), (out.floor, floor), (out.den, den)):
            values.append(value)
    out.C_final, out.n_final = C.clone(), n.clone()
    return out


def sequences(case: Case) -> list[tuple[int, int, int, int]]:
    """Batch row, begin, end and first slot of every sequence."""
    if case.cu_seqlens is None:
        return [(b, 0, case.S, 0) for b in range(case.B)]
    bounds = case.cu_seqlens
    return [(0, a, b, a // case.chunk_size + n) for n, (a, b) in enumerate(zip(bounds, bounds[1:], strict=False))]


def slots(case: Case) -> int:
    if case.cu_seqlens is None:
        return -(-case.S // case.chunk_size)
    return case.S // case.chunk_size + len(case.cu_seqlens) - 1


@cache
def draw(case: Case) -> Problem:
    """Inputs, reference results and exact states. States of unused slots are NaN."""
    B, H, S, Dqk, Dv = case.B, case.H, case.S, case.Dqk, case.Dv
    random = torch.Generator().manual_seed(case.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    def tokens(D: int) -> Tensor:
        return normal(B, H, S, D).to(case.dtype)

    N = len(sequences(case))
    i, f = normal(B, H, S), 2 + normal(B, H, S)
    for t in case.hard_forgets:
        f[:, :, t] = -torch.inf
    for t in case.silent:
        i[:, :, t] = -torch.inf
    reset = torch.zeros(B, S, dtype=torch.bool)
    reset[-1:, list(case.resets)] = True
    start = [normal(N, H, Dqk, Dv), normal(N, H, Dqk), normal(N, H)]
    if not case.initial_state:
        start = [torch.zeros_like(x) for x in start]
    p = Problem(
        case, tokens(Dqk), tokens(Dqk), tokens(Dv), tokens(Dv), i, f, start[2] if case.initial_state else None,
        reset if case.resets else None, None if case.cu_seqlens is None else torch.tensor(case.cu_seqlens),
    )  # fmt: skip
    nan = torch.nan
    p.C_in, p.dC_out = (torch.full((B, H, slots(case), Dqk, Dv), nan, dtype=torch.float64) for _ in range(2))
    p.n_in, p.dn_out = (torch.full((B, H, slots(case), Dqk), nan, dtype=torch.float64) for _ in range(2))
    p.iota, p.rho = torch.full((B, H, S), nan).double(), torch.full((B, H, S), nan).double()
    p.expected = {name: torch.full((B, H, S, D), nan, dtype=torch.float64) for name, D in
                  (("h", Dv), ("dq", Dqk), ("dk", Dqk), ("dv", Dv))}  # fmt: skip
    p.expected["r"] = torch.full((B, H, S), nan, dtype=torch.float64)
    dC, dn = normal(N, H, Dqk, Dv), normal(N, H, Dqk)
    for n, (b, begin, end, slot) in enumerate(sequences(case)):
        if begin == end:
            continue
        here = (b, slice(None), slice(begin, end))
        q, k, v = (x[here].double().requires_grad_() for x in (p.q, p.k, p.v))
        state = [x[n].clone().requires_grad_() for x in start]
        out = walk(case, q, k, v, i[here], f[here], reset[b, begin:end], state)
        h, r, floor, den = (torch.stack(x, 1) for x in (out.h, out.r, out.floor, out.den))
        dh = p.dh[here].double()
        assert out.C_final is not None and out.n_final is not None
        loss = (h * dh).sum() + (out.C_final * dC[n]).sum() + (out.n_final * dn[n]).sum()
        borders = [*out.C_in[1:], out.C_final, *out.n_in[1:], out.n_final]
        grads = [x if x is not None else torch.zeros(1) for x in
                 torch.autograd.grad(loss, [q, k, v, *borders], allow_unused=True)]  # fmt: skip
        with torch.no_grad():
            iota = 1 / den
            live = (r.abs() > floor) & torch.tensor(case.normalize)
            p.iota[here], p.rho[here] = iota, -iota * (dh * h).sum(-1) * r.sign() * live
            for name, x in (("h", h), ("r", r), ("dq", grads[0]), ("dk", grads[1]), ("dv", grads[2])):
                p.expected[name][here] = x
            chunks = len(out.C_in)
            for c in range(chunks):
                p.C_in[b, :, slot + c], p.n_in[b, :, slot + c] = out.C_in[c], out.n_in[c]
                p.dC_out[b, :, slot + c], p.dn_out[b, :, slot + c] = grads[3 + c], grads[3 + chunks + c]
    return p


def call(p: Problem, output: str, product: str, namespace: str = PLAIN, zero: bool = False) -> tuple[Tensor, Tensor]:
    """The op's two results. zero: the states of first (h, dq) or last (dk, dv) chunks are said to be zero."""
    wide = torch.float64 if product == "f64" else torch.float32
    X, Y, Z = {"h": (p.q, p.k, p.v), "dq": (p.dh, p.v, p.k), "dk": (p.v, p.dh, p.q), "dv": (p.k, p.q, p.dh)}[output]
    states, normalisers = (p.C_in, p.n_in) if output in ("h", "dq") else (p.dC_out, p.dn_out)
    iota, rho = (None, None) if output == "h" else (p.iota.to(wide), p.rho.to(wide))
    return _ops.library(namespace).mlstm_outputs(
        _ops.OUTPUTS[output], _ops.PRODUCTS[product], X, Y, Z, p.i, p.f, p.m0, p.cu_seqlens, p.reset,
        states.to(DTYPES[product]), normalisers.to(wide), iota, rho, {"dq": p.q, "dk": p.k}.get(output),
        *p.case.options.values(), p.case.chunk_size, zero,
    )  # fmt: skip


def error(actual: Tensor, expected: Tensor, scale: Tensor | None = None) -> float:
    """Relative, Frobenius; infinite where there is a NaN."""
    size = (expected if scale is None else scale).norm().clamp_min(1e-300)
    difference = ((actual.double() - expected).norm() / size).item()
    return difference if difference == difference else float("inf")


def check(p: Problem, output: str, product: str, namespace: str = PLAIN, **options: Any) -> None:
    out, per_token = call(p, output, product, namespace, **options)
    tolerance, expected = TOLERANCE[product], p.expected[output]
    assert out.dtype == p.q.dtype and error(out, expected) < tolerance, (output, error(out, expected))
    if output == "h":
        assert error(per_token[:, :, 0], p.expected["r"]) < tolerance
    if output in ("dq", "dk"):
        factor = getattr(p, output[1]).double()
        sizes = factor.norm(dim=-1) * expected.norm(dim=-1)
        assert error(per_token.sum(2), (factor * expected).sum(-1), sizes) < tolerance


def check_all(case: Case, product: str, namespace: str = PLAIN, **options: Any) -> None:
    p = draw(replace(case, dtype=DTYPES[product]))
    for output in OUTPUTS:
        check(p, output, product, namespace, **options)


SHAPES = {
    "1": Case(B=2, H=3, S=1, Dqk=5, Dv=7),
    "15": Case(S=15, Dqk=16, Dv=33),
    "16": Case(S=16, Dqk=65, Dv=5, chunk_size=256),
    "17": Case(S=17, Dqk=7, Dv=16, chunk_size=128),
    "63": Case(S=63, Dqk=33, Dv=64),
    "64": Case(B=2, S=64, Dqk=64, Dv=16, chunk_size=256),
    "65": Case(H=2, S=65, Dqk=16, Dv=65),
    "130": Case(S=130, Dqk=64, Dv=128, chunk_size=128),
    "257": Case(S=257, Dqk=20, Dv=36, chunk_size=256),
    "257 in 64s": Case(S=257, Dqk=16, Dv=8),
    "wide v": Case(S=20, Dqk=24, Dv=256),
    "wide qk": Case(S=20, Dqk=256, Dv=24),
    "three column tiles and more": Case(S=20, Dqk=320, Dv=321, scale=0.1),
}


@products
@pytest.mark.parametrize("case", SHAPES.values(), ids=SHAPES.keys())
def test_shapes(case: Case, product: str) -> None:
    check_all(case, product)


CASES = {
    "sigmoid": Case(S=70, sigmoid_gate=True),
    "sigmoid, not normalised": Case(S=70, sigmoid_gate=True, normalize=False),
    "no initial state": Case(S=70, initial_state=False),
    "resets": Case(B=2, S=140, chunk_size=128, resets=(0, 5, 64, 65, 139)),
    "zero forget gates": Case(S=140, chunk_size=128, hard_forgets=(3, 64, 100), silent=(7, 64)),
    "sequences": Case(S=150, H=2, cu_seqlens=(0, 0, 1, 70, 71, 71, 150, 150), resets=(20, 71)),
    "sequences, sigmoid": Case(S=70, cu_seqlens=(0, 30, 70), sigmoid_gate=True, chunk_size=256),
    "one long sequence": Case(S=140, cu_seqlens=(0, 140), chunk_size=128),
    "negative scale": Case(S=70, seed=5, scale=-0.5),
}


@products
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_cases(case: Case, product: str) -> None:
    check_all(case, product)


@pytest.mark.parametrize("eps", [0.0, 1e-6])
@pytest.mark.parametrize("sigmoid_gate", [False, True])
def test_denominators(sigmoid_gate: bool, eps: float) -> None:
    check_all(Case(S=100, eps=eps, sigmoid_gate=sigmoid_gate), "f64")


@products
def test_X_comes_with_every_step_where_it_does_not_fit(product: str) -> None:
    tall = Case(S=70, Dqk=320, Dv=20, chunk_size=128, scale=0.1, dtype=DTYPES[product])
    wide = replace(tall, Dqk=20, Dv=330)
    with simt_options(PLAIN, max_shared_bytes=66_000):  # all of X would be 46,080 bytes and more
        for output, case in (("h", tall), ("dv", tall), ("dq", wide), ("dk", wide)):
            check(draw(case), output, product)
    with simt_options(PLAIN, max_shared_bytes=40_000), pytest.raises(RuntimeError, match="shared memory"):
        call(draw(tall), "h", product)


def with_layout(p: Problem, layout: str) -> Problem:
    """The same values of q, k, v, dh, elsewhere in memory."""

    def moved(x: Tensor) -> Tensor:
        B, H, S, D = x.shape
        if layout == "tokens first":
            return x.transpose(1, 2).contiguous().transpose(1, 2)
        shift, behind = {"misaligned": (1, 0), "NaN behind": (0, 8), "wide rows": (0, 0)}[layout]
        pad = {"wide rows": 5}.get(layout, 0)
        storage = torch.full((shift + B * H * (S + behind) * (D + pad),), torch.nan, dtype=x.dtype)
        view = storage[shift:].view(B, H, S + behind, D + pad)[:, :, :S, :D]
        view.copy_(x)
        return view

    return replace(p, q=moved(p.q), k=moved(p.k), v=moved(p.v), dh=moved(p.dh))


@products
@pytest.mark.parametrize("layout", ["tokens first", "misaligned", "NaN behind", "wide rows"])
def test_layouts(layout: str, product: str) -> None:
    p = draw(Case(B=2, H=2, S=70, Dqk=16, Dv=40, dtype=DTYPES[product]))
    for output in OUTPUTS:
        for actual, same in zip(call(with_layout(p, layout), output, product), call(p, output, product), strict=True):
            assert torch.equal(actual, same)


@pytest.mark.parametrize("layout", ["tokens first", "misaligned"])
def test_fp16_data(layout: str) -> None:
    p = with_layout(draw(Case(S=70, Dqk=36, Dv=65, dtype=torch.float16)), layout)
    for output in OUTPUTS:
        check(p, output, "tf32")


@products
def test_nan_stays_in_its_sequence(product: str) -> None:
    case = Case(S=150, cu_seqlens=(0, 40, 60, 150), dtype=DTYPES[product])
    p = draw(case)
    foreign = replace(p, **{name: getattr(p, name).clone() for name in ("q", "k", "v", "dh", "i", "f")})
    for name in ("q", "k", "v", "dh", "i", "f"):
        getattr(foreign, name)[:, :, 40:60] = torch.nan
    for output in OUTPUTS:
        clean, dirty = call(p, output, product)[0], call(foreign, output, product)[0]
        assert torch.equal(dirty[:, :, :40], clean[:, :, :40]) and torch.equal(dirty[:, :, 60:], clean[:, :, 60:])
        assert dirty[:, :, 40:60].isnan().all()


@products
def test_nan_states_stay_behind_resets(product: str) -> None:
    p = draw(Case(S=140, resets=(50, 64), dtype=DTYPES[product]))
    dirty = replace(p, C_in=p.C_in.clone(), n_in=p.n_in.clone(), dC_out=p.dC_out.clone(), dn_out=p.dn_out.clone())
    for x, chunk in ((dirty.C_in, 1), (dirty.n_in, 1), (dirty.dC_out, 0), (dirty.dn_out, 0)):
        x[:, :, chunk] = torch.nan
    for output in OUTPUTS:
        tokens = slice(64, None) if output in ("h", "dq") else slice(None, 50)
        assert torch.equal(call(dirty, output, product)[0][:, :, tokens], call(p, output, product)[0][:, :, tokens])


@products
@pytest.mark.parametrize("cu_seqlens", [None, (0, 20, 100)])
def test_zero_outer_states_are_not_read(cu_seqlens: tuple[int, ...] | None, product: str) -> None:
    p = draw(Case(S=100, cu_seqlens=cu_seqlens, dtype=DTYPES[product], initial_state=False))
    zero, absent = (
        replace(p, C_in=p.C_in.clone(), n_in=p.n_in.clone(), dC_out=p.dC_out.clone(), dn_out=p.dn_out.clone())
        for _ in range(2)
    )
    firsts, lasts = ([0], [1]) if cu_seqlens is None else ([0, 1], [0, 2])
    for q, value in ((zero, 0.0), (absent, torch.nan)):
        for x, outer in ((q.C_in, firsts), (q.n_in, firsts), (q.dC_out, lasts), (q.dn_out, lasts)):
            x[:, :, outer] = value
    for output in OUTPUTS:
        for actual, same in zip(call(absent, output, product, zero=True), call(zero, output, product), strict=True):
            assert error(actual, same.double()) < 1e-6


def test_nothing_to_do() -> None:
    for case in (Case(B=0), Case(S=0), Case(S=0, cu_seqlens=(0, 0, 0))):
        for output in OUTPUTS:
            assert call(draw(case), output, "f64")[0].numel() == 0


@products
def test_results_do_not_depend_on_the_order_of_threads(product: str) -> None:
    p = draw(Case(S=70, dtype=DTYPES[product]))
    for output in OUTPUTS:
        results = []
        for seed in (0, 1, 7):
            with simt_options(PLAIN, seed=seed):
                results.append(call(p, output, product))
        assert all(torch.equal(x, y) for r in results[1:] for x, y in zip(r, results[0], strict=True))


@pytest.mark.parametrize("product", ["bf16", "tf32"])
def test_ldmatrix_meets_no_bank_conflicts(product: str) -> None:
    p = draw(Case(S=70, dtype=DTYPES[product]))
    conflicts = _ops.library(PLAIN).simt_count("bank_conflicts")
    for output in OUTPUTS:
        call(p, output, product)
    assert _ops.library(PLAIN).simt_count("bank_conflicts") == conflicts


@products
@pytest.mark.parametrize("seed", [1, 2])
def test_no_races(product: str, seed: int) -> None:
    with simt_options(RACE, seed=seed):
        check_all(Case(S=70, Dqk=20, Dv=70, chunk_size=128), product, RACE)
    with simt_options(RACE, seed=seed, max_shared_bytes=66_000):
        check(draw(Case(S=10, Dqk=320, Dv=16, dtype=DTYPES[product])), "h", product, RACE)


two_tiles = Case(S=100, chunk_size=128)
FAULTS: dict[str, tuple[str, str, Case]] = {
    "mlstm_outputs: one group too few is waited for": ("tf32", "h", two_tiles),
    "mlstm_outputs: no barrier before a step": ("bf16", "dk", two_tiles),
    "mlstm_outputs: a stage is filled while it is read": ("bf16", "dq", two_tiles),
    "mlstm_outputs: one buffer of column vectors": ("bf16", "dv", two_tiles),
    "mlstm_outputs: a token does not see itself": ("f64", "dk", Case()),
    "mlstm_outputs: rows of another warp": ("f64", "dv", Case()),
    "mlstm_outputs: tokens behind the chunk are read": ("f64", "h", Case()),
    "tile: transposed B in the order of A": ("tf32", "h", Case()),
}


def test_every_planted_fault_is_tested() -> None:
    assert set.union(*map(planted, SOURCES)) == set(FAULTS)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault: str, seed: int) -> None:
    product, output, case = FAULTS[fault]
    p = draw(replace(case, dtype=DTYPES[product]))
    check(p, output, product, RACE)
    assert caught(fault, seed, lambda: check(p, output, product, RACE))
