"""The gate vectors of the chunkwise mLSTM on CUDA kernels, run by the host executor, against the recurrence.

What is compared is what other kernels make of them: m, the weights of tokens and of the incoming state, the stabiliser
of every chunk. All of it follows from one loop over tokens in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.executor import PLAIN, RACE, needs_race_build
from tests.support.mlstm_plain import M_MIN, Problem, boundaries, packed, step
from tests.support.mutants import caught, planted, simt_options
from xlstm_cuda import _ops

SOURCE = "csrc/cuda/mlstm_chunkwise/gates.cu"
FAULTS = {
    "mlstm_gates: M goes on past a boundary",
    "mlstm_gates: boundaries of earlier threads ignored",
    "mlstm_gates: m0 as it is",
    "mlstm_gates: maps overwritten while they are read",
    "mlstm_gates: no barrier before the maps are read",
    "mlstm_gates: sums run on into the next chunk",
    "mlstm_gates: whole vectors at the last token",
}
LOG2E = 1 / np.log(2)

pytestmark = [pytest.mark.simt, needs_race_build]
namespaces = pytest.mark.parametrize("namespace", [PLAIN, RACE])
variants = pytest.mark.parametrize("sigmoid_gate", [False, True], ids=["exp", "sigmoid"])
chunk_sizes = pytest.mark.parametrize("chunk_size", [64, 128, 256])


@dataclass
class Case:
    """Arguments of mlstm_gates."""

    i: Tensor
    f: Tensor
    m0: Tensor | None = None
    cu_seqlens: Tensor | None = None
    reset: Tensor | None = None
    sigmoid_gate: bool = False
    chunk_size: int = 64
    double: bool = True

    def run(self, namespace: str) -> dict[str, np.ndarray]:
        names = ("y", "z", "m", "start", "M", "g", "m_final")
        results = _ops.library(namespace).mlstm_gates(*vars(self).values())
        return {name: x.numpy() for name, x in zip(names, results, strict=True)}


def gates(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    i, f = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return (3 * i).to(dtype), (2 * f + 2).to(dtype)


# ---- the recurrence ----


@dataclass
class Chunk:
    """Of all heads that run side by side, (N, H, ...)."""

    begin: int
    weights: np.ndarray  # (tokens, tokens): D
    state: np.ndarray  # (tokens,): b_bar
    start: np.ndarray  # (tokens,)
    M: np.ndarray


def recurrence(case: Case, begin: int, end: int, m: Tensor) -> tuple[np.ndarray, list[Chunk], np.ndarray]:
    """m of the tokens begin .. end - 1, their chunks, the last m; of all rows, m: (N, H).

    Every token of a chunk has a unit vector of its own as its key, and what enters the chunk is one more. The
    normaliser then holds what is looked for: the weights of the tokens, and that of the state which entered.
    """
    L, units = case.chunk_size, torch.eye(case.chunk_size + 1, dtype=torch.float64)
    k = units[(torch.arange(case.i.shape[2]) - begin) % L].expand(*case.i.shape, L + 1)
    p = Problem(k, k, k[..., :0], case.i.double(), case.f.double(), reset=case.reset, sigmoid_gate=case.sigmoid_gate)
    ms, chunks = torch.zeros(*m.shape, end - begin, dtype=torch.float64), []
    for first in range(begin, end, L):
        last, M = min(first + L, end), m.clamp(min=M_MIN)
        n, start = units[L].expand(*m.shape, L + 1), torch.full(m.shape, -1)
        rows, starts = [], []
        for t in range(first, last):
            _, n, m = step(p, t, (n[..., None][..., :0], n, m))
            start = torch.where(cut(p, t), t, start)
            ms[..., t - begin] = m
            rows.append(n)
            starts.append(start)
        weights = torch.stack(rows, 2).numpy()
        chunk = weights[..., : last - first], weights[..., L], torch.stack(starts, 2).numpy(), M.numpy()
        chunks.append(Chunk(first, *chunk))
    return ms.numpy(), chunks, m.numpy()


def cut(p: Problem, t: int) -> Tensor:
    """Whether nothing before token t is seen from it on."""
    closed = p.f[:, :, t] < -1e9
    return closed if p.reset is None else closed | p.reset[:, t, None]


# ---- what consumers make of the gate vectors ----


def decay(y: np.ndarray, z: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # masked weights may be anything
        return np.exp2((y[..., 0] - z[..., 0]) + (y[..., 1] - z[..., 1]))


def token_weights(y: np.ndarray, z: np.ndarray, start: np.ndarray, begin: int) -> np.ndarray:
    t = begin + np.arange(start.shape[-1])
    visible = (np.maximum(start, begin)[..., None] <= t) & (t <= t[:, None])
    return np.where(visible, decay(y[..., None, :, :], z[..., :, None, :]), 0)


def state_weights(M: np.ndarray, z: np.ndarray, start: np.ndarray) -> np.ndarray:
    return np.where(start < 0, decay(M[..., None, :], z), 0)


def close(actual: Any, expected: Any, double: bool, relative: bool = False) -> None:
    tolerance = 1e-9 if double else 1e-6
    np.testing.assert_allclose(actual, expected, rtol=tolerance if relative else 0, atol=tolerance)


def check_chunk(case: Case, out: dict[str, np.ndarray], slot: int, chunk: Chunk) -> None:
    tokens = slice(chunk.begin, chunk.begin + chunk.start.shape[-1])
    y, z, start = (out[name][:, :, tokens] for name in ("y", "z", "start"))
    M = out["M"][:, :, slot]
    assert np.array_equal(start, chunk.start)
    close(token_weights(y, z, start, chunk.begin), chunk.weights, case.double)  # its last row is a_bar
    close(state_weights(M, z, start), chunk.state, case.double)
    close(out["g"][:, :, slot], chunk.state[..., -1], case.double)
    close(M.astype(float).sum(-1), 0 if case.sigmoid_gate else chunk.M * LOG2E, case.double, relative=True)


def check(case: Case, namespace: str) -> dict[str, np.ndarray]:
    out = case.run(namespace)
    S, packs = case.i.shape[2], case.cu_seqlens is not None
    bounds = [0, S] if case.cu_seqlens is None else case.cu_seqlens.tolist()
    m_final = out["m_final"]
    m0 = torch.zeros(m_final.shape) if case.m0 is None else case.m0
    used = np.zeros(out["g"].shape[2], bool)
    for n, (begin, end) in enumerate(pairwise(bounds)):
        rows = slice(n, n + 1) if packs else slice(None)
        slot = begin // case.chunk_size + n if packs else 0
        m, chunks, last = recurrence(case, begin, end, m0[rows].double())
        close(out["m"][:, :, begin:end], 0 if case.sigmoid_gate else m, case.double, relative=True)
        close(m_final[rows], last, case.double, relative=True)
        for c, chunk in enumerate(chunks):
            check_chunk(case, out, slot + c, chunk)
            used[slot + c] = True
    assert np.isnan(out["g"][:, :, ~used]).all() and np.isnan(out["M"][:, :, ~used]).all()  # not written
    return out


# ---- tests ----


@variants
@chunk_sizes
@pytest.mark.parametrize("S", [1, 7, 8, 9, 63, 64, 65, 255, 256, 257, 1000])
def test_lengths(S: int, chunk_size: int, sigmoid_gate: bool) -> None:
    i, f = gates(2, 2, S, seed=S)
    m0 = torch.randn(2, 2, dtype=torch.float64)
    for double in (True, False):
        check(Case(i, f, m0 if double else m0.float(), None, None, sigmoid_gate, chunk_size, double), PLAIN)


@variants
@chunk_sizes
def test_several_tiles(chunk_size: int, sigmoid_gate: bool) -> None:
    i, f = gates(1, 1, 9000)
    check(Case(i, f, None, None, None, sigmoid_gate, chunk_size, False), PLAIN)


@variants
@pytest.mark.parametrize("S", [9, 257])
def test_lengths_without_races(S: int, sigmoid_gate: bool) -> None:
    check(Case(*gates(2, 1, S), sigmoid_gate=sigmoid_gate), RACE)


@variants
@chunk_sizes
@pytest.mark.parametrize("rate", [0.003, 0.03, 0.5])
def test_boundaries(rate: float, chunk_size: int, sigmoid_gate: bool) -> None:
    case = Case(*gates(2, 2, 700), torch.randn(2, 2).double(), sigmoid_gate=sigmoid_gate, chunk_size=chunk_size)
    out = check(replace(case, **boundaries(case.i, case.f, rate)), PLAIN)
    assert (out["start"] >= 0).any()


@namespaces
@variants
def test_boundaries_of_packed_sequences(namespace: str, sigmoid_gate: bool) -> None:
    cu = packed(0, 5, 0, 64, 64, 1, 130, 300, 0)
    i, f = gates(1, 2, int(cu[-1]))
    m0 = torch.randn(9, 2, dtype=torch.float64)
    out = check(Case(m0=m0, cu_seqlens=cu, sigmoid_gate=sigmoid_gate, **boundaries(i, f, 0.02)), namespace)
    assert np.array_equal(out["m_final"][[0, 2, 8]], m0[[0, 2, 8]])


@chunk_sizes
def test_packed_sequences(chunk_size: int) -> None:
    generator = torch.Generator().manual_seed(chunk_size)
    for most in (3, 100, 700):
        cu = packed(*torch.randint(0, most, (20,), generator=generator).tolist())
        i, f = gates(1, 1, int(cu[-1]), seed=most)
        check(Case(i, f, torch.randn(20, 1), cu, chunk_size=chunk_size, double=False), PLAIN)


def test_no_tokens() -> None:
    m0 = torch.tensor([[2.0], [-torch.inf], [torch.nan]])
    i, f = gates(1, 1, 0)
    out = Case(i, f, m0, packed(0, 0, 0), double=False).run(PLAIN)
    assert np.array_equal(out["m_final"], m0, equal_nan=True)
    assert Case(i, f, None, packed(), double=False).run(PLAIN)["m_final"].shape == (0, 1)


@chunk_sizes
def test_chunk_slots(chunk_size: int) -> None:
    """Every token lies in one chunk; chunks follow one another; unused slots have no tokens."""
    generator = torch.Generator().manual_seed(0)
    chunks_of = _ops.library(PLAIN).mlstm_chunks
    for most in (2, 70, 1000):
        lengths = torch.randint(0, most, (30,), generator=generator).tolist()
        cu = packed(*lengths)
        (table,) = chunks_of(torch.zeros(1, int(cu[-1])), cu, chunk_size).tolist()
        assert len(table) == int(cu[-1]) // chunk_size + 30
        expected = [
            [n, b, min(b + chunk_size, end), b == begin, b + chunk_size >= end]
            for n, (begin, end) in enumerate(zip(cu.tolist(), cu[1:].tolist(), strict=False))
            for b in range(begin, end, chunk_size)
        ]
        assert [chunk for chunk in table if chunk[1] < chunk[2]] == expected
    rows = chunks_of(torch.zeros(2, 300), None, chunk_size).tolist()
    ends = [min(b + chunk_size, 300) for b in range(0, 300, chunk_size)]
    for row, table in enumerate(rows):
        assert table == [[row, c * chunk_size, e, c == 0, e == 300] for c, e in enumerate(ends)]


@pytest.mark.parametrize("i_dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("f_dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_dtypes_and_strides(i_dtype: torch.dtype, f_dtype: torch.dtype) -> None:
    i, f = gates(2, 3, 75, dtype=i_dtype)[0], gates(2, 3, 75, dtype=f_dtype)[1]
    whole = check(Case(i, f), PLAIN)
    strided = Case(i.permute(2, 0, 1).contiguous().permute(1, 2, 0), torch.stack([f, f], -1)[..., 1])
    shifted = Case(torch.cat([i[..., :3], i], -1)[..., 3:], f)  # rows that start between two vectors
    for case in (strided, shifted):
        for name, x in case.run(PLAIN).items():
            assert np.array_equal(x, whole[name]), name


@variants
@pytest.mark.parametrize("m0", [-torch.inf, -1e30, -90.0, 90.0])
def test_initial_stabiliser(m0: float, sigmoid_gate: bool) -> None:
    i, f = gates(1, 2, 100)
    i[:, :, :70] = -torch.inf  # m0 alone decides over the first chunk
    for double in (True, False):
        m = torch.full((1, 2), m0, dtype=torch.float64 if double else torch.float32)
        check(Case(i, f, m, sigmoid_gate=sigmoid_gate, double=double), PLAIN)


@variants
@chunk_sizes
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize(("i", "f"), [(80, 50), (-80, -50), (80, -50), (-80, 50)])
def test_extreme_gates(i: float, f: float, double: bool, chunk_size: int, sigmoid_gate: bool) -> None:
    """Also where the sum of log forget gates is large: weights keep their digits."""
    noise = gates(2, 1, 300)
    pre_i, pre_f = i + noise[0], f + noise[1]
    pre_i[1, :, ::2] *= -1
    pre_f[1, :, ::3] *= -1
    check(Case(pre_i, pre_f, sigmoid_gate=sigmoid_gate, chunk_size=chunk_size, double=double), PLAIN)


@variants
@pytest.mark.parametrize("i", [-torch.inf, 1.0])
@pytest.mark.parametrize("f", [-torch.inf, torch.inf, 1.0])
def test_infinite_gates(i: float, f: float, sigmoid_gate: bool) -> None:
    pre_i, pre_f = gates(1, 1, 150)
    pre_i[..., 20:90] = i
    pre_f[..., 30:100] = f
    for double in (True, False):
        check(Case(pre_i, pre_f, sigmoid_gate=sigmoid_gate, double=double), PLAIN)
        everywhere = Case(torch.full((1, 1, 70), i), torch.full((1, 1, 70), f), None, None, None, sigmoid_gate)
        everywhere.double = double
        check(everywhere, PLAIN)


@variants
@pytest.mark.parametrize("which", ["i", "f"])
def test_nan(which: str, sigmoid_gate: bool) -> None:
    """From the first NaN on, to the end of the head's sequence; a reset ends it."""
    i, f = gates(1, 2, 300)
    (i if which == "i" else f)[0, 0, 100] = torch.nan
    clean = Case(*gates(1, 2, 300), sigmoid_gate=sigmoid_gate).run(PLAIN)
    out = Case(i, f, sigmoid_gate=sigmoid_gate).run(PLAIN)
    for name in ("y", "z", "m", "start", "M", "g", "m_final"):
        assert np.array_equal(out[name][0, 1], clean[name][0, 1]), name  # the other head
    assert np.array_equal(out["z"][0, 0, :100], clean["z"][0, 0, :100])
    own = decay(out["y"][0, 0], out["z"][0, 0])
    assert np.isfinite(own[:100]).all() and np.isnan(own[100])
    if not sigmoid_gate:
        assert np.isnan(out["m"][0, 0, 100:]).all() and np.isnan(out["m_final"][0, 0])
    reset = torch.zeros(1, 300, dtype=torch.bool)
    reset[0, 120] = True
    again = Case(i, f, reset=reset, sigmoid_gate=sigmoid_gate).run(PLAIN)
    fresh = Case(i[..., 120:], f[..., 120:], sigmoid_gate=sigmoid_gate).run(PLAIN)
    close(again["m"][..., 120:], fresh["m"], True)
    assert np.isfinite(again["z"][..., 120:, :]).all() and np.isfinite(again["m_final"]).all()


@pytest.mark.parametrize("double", [True, False])
def test_every_output_is_written(double: bool) -> None:
    """The executor fills outputs with NaN, and start with -1: here no token has -1."""
    i, f = gates(2, 2, 333)
    reset = (torch.arange(333) % 64 == 0).expand(2, 333)
    out = Case(i, f, reset=reset, double=double).run(PLAIN)
    assert not any(np.isnan(x).any() for x in out.values())
    assert np.array_equal(out["start"], np.broadcast_to(np.arange(333) // 64 * 64, (2, 2, 333)))


def mixed_case(**options: Any) -> Case:
    """Several tiles of several warps, empty sequences, boundaries, m0 that must be clamped."""
    cu = packed(0, 37, 1163, 0, 128, 96, 0, 12, 0, 0, 0, 0)
    i, f = gates(1, 1, int(cu[-1]))
    i[..., 37:110] = -torch.inf
    m0 = torch.full((12, 1), -torch.inf).double()
    case = Case(m0=m0, cu_seqlens=cu, **boundaries(i, f, 0.01, seed=2), **options)
    assert case.reset is not None
    case.reset[:, 37:110] = False
    case.f[..., 37:110] = 1
    return case


@namespaces
def test_schedule_does_not_matter(namespace: str) -> None:
    expected = check(mixed_case(), namespace)
    for seed in range(1, 5):
        with simt_options(namespace, seed=seed):
            for name, x in mixed_case().run(namespace).items():
                assert np.array_equal(x, expected[name], equal_nan=True), name


@pytest.mark.parametrize("fault", sorted(FAULTS))
@pytest.mark.parametrize("seed", range(4))
def test_planted_faults_are_caught(fault: str, seed: int) -> None:
    assert caught(fault, seed, lambda: check(mixed_case(), RACE))


def test_planted_faults_are_listed() -> None:
    assert planted(SOURCE) == FAULTS
