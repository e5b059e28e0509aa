"""Problems for tests of the chunkwise mLSTM's kernels, and all intermediate results of them in float64.

These come from the plain recurrence and autograd.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

M_MIN = -1e30
State = tuple[Tensor, ...]  # C (N, H, Dqk, Dv), n (N, H, Dqk), m (N, H)
VARIANTS: dict[str, dict[str, bool]] = {
    "exp": {},
    "sigmoid": {"sigmoid_gate": True, "normalize": False},
    "sigmoid normalised": {"sigmoid_gate": True},
}


@dataclass
class Problem:
    """Inputs of any dtype, q, k (B, H, S, Dqk), v (B, H, S, Dv), i, f (B, H, S); states (N, H, ...)."""

    q: Tensor
    k: Tensor
    v: Tensor
    i: Tensor
    f: Tensor
    initial: State | None = None
    cu_seqlens: Tensor | None = None
    reset: Tensor | None = None
    sigmoid_gate: bool = False
    normalize: bool = True
    norm_grad: bool = True
    eps: float = 1e-6
    scale: float = 0.5
    chunk_size: int = 64
    # of the loss: coefficients of h and of the final state
    dh: Tensor = field(default_factory=lambda: torch.zeros(()))
    final_grad: State | None = None

    @property
    def bounds(self) -> list[int]:
        return [0, self.i.shape[2]] if self.cu_seqlens is None else self.cu_seqlens.tolist()

    @property
    def num_sequences(self) -> int:
        return self.i.shape[0] if self.cu_seqlens is None else len(self.cu_seqlens) - 1

    @property
    def slots(self) -> int:
        S, L = self.i.shape[2], self.chunk_size
        return -(-S // L) if self.cu_seqlens is None else S // L + self.num_sequences

    def with_(self, **changes: Any) -> Problem:
        return replace(self, **changes)

    def in_dtype(self, dtype: torch.dtype) -> Problem:
        """q, k, v and dh rounded, as a kernel for this type reads them."""
        return self.with_(**{name: getattr(self, name).to(dtype) for name in ("q", "k", "v", "dh")})


def problem(
    B: int, H: int, S: int, Dqk: int = 3, Dv: int = 2, *, seed: int = 0, states: bool = True, **options: Any
) -> Problem:
    """Random inputs, a loss on h and with `states` an initial state and a loss on the final one."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    cu = options.get("cu_seqlens")
    N = B if cu is None else len(cu) - 1
    pairs = [(normal(N, H, Dqk, Dv), normal(N, H, Dqk), normal(N, H)) for _ in range(2)]
    return Problem(
        normal(B, H, S, Dqk),
        normal(B, H, S, Dqk),
        normal(B, H, S, Dv),
        2 * normal(B, H, S),
        2 * normal(B, H, S) + 3,
        initial=pairs[0] if states else None,
        final_grad=pairs[1] if states else None,
        dh=normal(B, H, S, Dv),
        **options,
    )


def in_whole_pieces(x: Tensor) -> Tensor:
    """The same values in rows that begin at multiples of 8 elements, which TMA asks for; where they do, as they are."""
    if all(size == 1 or stride % 8 == 0 for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True)):
        return x if x.data_ptr() % 16 == 0 else x.clone()
    *sizes, D = x.shape
    wide = torch.full((*sizes, -(-D // 8) * 8), torch.nan, dtype=x.dtype)
    wide[..., :D] = x
    return wide[..., :D]


def packed(*lengths: int) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


def with_boundaries(p: Problem, rate: float, seed: int = 0) -> Problem:
    return p.with_(**boundaries(p.i, p.f, rate, seed))


def boundaries(i: Tensor, f: Tensor, rate: float, seed: int = 0) -> dict[str, Tensor]:
    """Resets, zero forget gates, both at once, and zero forget gates where nothing is written: reset, i, f."""
    g = torch.Generator().manual_seed(seed)
    B, _, S = i.shape
    reset = torch.rand(B, S, generator=g) < rate
    zero, closed = torch.rand(2, *i.shape, generator=g) < rate
    f = f.masked_fill(zero | (closed & reset[:, None]), -torch.inf)
    return {"reset": reset, "i": i.masked_fill(closed, -torch.inf), "f": f}


@dataclass
class Plain:
    """What the recurrence gives; slots without tokens hold NaN."""

    h: Tensor
    r: Tensor  # (B, H, S)
    m: Tensor  # (B, H, S)
    C: Tensor  # (B, H, slots, Dqk, Dv) entering every chunk
    n: Tensor
    final: State
    # gradients
    dq: Tensor
    dk: Tensor
    dv: Tensor
    di: Tensor
    df: Tensor
    d_initial: State
    C_end: Tensor  # (B, H, slots, ...) at the end of every chunk, and its gradient
    n_end: Tensor
    dC: Tensor
    dn: Tensor


def inverse_denominator(p: Problem, r: Tensor, m: Tensor) -> Tensor:
    """1 / (max(|r|, exp(-m)) + eps), where exp(-m) may be infinite."""
    if not p.normalize:
        return torch.ones_like(r)
    if p.sigmoid_gate:
        m = torch.zeros_like(m)
    size = r.abs()
    live = size > torch.exp(-m)
    m = m.masked_fill(live, 0)
    small = torch.exp(m.clamp(max=0))
    of_m = small / (torch.exp(-m.clamp(min=0)) + p.eps * small)
    return torch.where(live, 1 / (torch.where(live, size, 1) + p.eps), of_m)


def step(p: Problem, t: int, state: State) -> State:
    """The state after token t."""
    if p.reset is not None:
        state = tuple(x.masked_fill(p.reset[:, t].view(-1, *[1] * (x.ndim - 1)), 0) for x in state)
    k, v, i, f = (x[:, :, t] for x in (p.k, p.v, p.i, p.f))
    C, n, m = state
    if p.sigmoid_gate:
        forget, write = torch.sigmoid(f), torch.sigmoid(i)
    else:
        decayed = logsigmoid(f) + m.clamp(min=M_MIN)
        m = torch.where(i > decayed, i, decayed).clamp(min=M_MIN)
        forget, write = torch.exp(decayed - m), torch.exp(i - m)
    k = write[..., None] * k
    return forget[..., None, None] * C + k[..., :, None] * v[..., None, :], forget[..., None] * n + k, m


def output(p: Problem, t: int, state: State) -> tuple[Tensor, Tensor]:
    """h and r of token t."""
    C, n, m = state
    q = p.q[:, :, t] * p.scale
    r = (q * n).sum(-1)
    inverse = inverse_denominator(p, r, m)
    if not p.norm_grad:  # a constant in the units in which the floor is 1
        inverse = inverse.detach() if p.sigmoid_gate else inverse.detach() * torch.exp(m - m.detach())
    return (q[..., None] * C).sum(-2) * inverse[..., None], r


@dataclass
class Walk:
    """One walk over the tokens begin .. end - 1 of all batch rows."""

    tokens: list[tuple[Tensor, Tensor, Tensor]]  # h, r, m
    entering: list[State]  # every chunk
    leaving: list[State]
    final: State

    @classmethod
    def over(cls, p: Problem, begin: int, end: int, state: State) -> Walk:
        walk = cls([], [], [], state)
        for t in range(begin, end):
            place = (t - begin) % p.chunk_size
            if place == 0:
                walk.entering.append(state)
            state = step(p, t, state)
            m = torch.zeros_like(state[2]) if p.sigmoid_gate else state[2]
            walk.tokens.append((*output(p, t, state), m))
            if place == p.chunk_size - 1 or t == end - 1:
                state = tuple(x.clone() for x in state)  # h does not come from what leaves the chunk
                walk.leaving.append(state)
        walk.final = state
        return walk


_KNOWN: OrderedDict[tuple[object, ...], Plain] = OrderedDict()  # of the last few problems, by what they hold
_KEPT = 16


def plain(problem: Problem) -> Plain:
    """Computed once for kernels that are tested one after another on the same problem."""
    key = tuple(_contents(getattr(problem, part.name)) for part in fields(problem))
    if key not in _KNOWN:
        _KNOWN[key] = _computed(problem)
    _KNOWN.move_to_end(key)
    while len(_KNOWN) > _KEPT:
        _KNOWN.popitem(last=False)
    return _KNOWN[key]


def _contents(value: object) -> object:
    """What a part of a problem is told by: the values of tensors, whatever their dtype."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.detach().double().contiguous().numpy().tobytes()
    return tuple(map(_contents, value)) if isinstance(value, tuple) else value


def _computed(problem: Problem) -> Plain:
    wide = {name: getattr(problem, name).detach().double().requires_grad_() for name in ("q", "k", "v", "i", "f")}
    p = problem.with_(**wide)
    B, H, S, Dqk = p.q.shape
    Dv = p.v.shape[-1]
    zeros = [torch.zeros(p.num_sequences, H, *tail) for tail in ((Dqk, Dv), (Dqk,), ())]
    initial = tuple(x.detach().double().requires_grad_() for x in (zeros if p.initial is None else p.initial))
    starts = [initial] if p.cu_seqlens is None else list(zip(*(x.split(1) for x in initial), strict=True))
    walks = [Walk.over(p, *bounds, start) for bounds, start in zip(pairwise(p.bounds), starts, strict=True)]

    tokens = [token for walk in walks for token in walk.tokens]
    h, r, m = (torch.stack(x, 2) for x in zip(*tokens, strict=True)) if tokens else (p.v * 0, p.i * 0, p.i * 0)
    final = tuple(torch.cat(x) for x in zip(*(walk.final for walk in walks), strict=True))
    loss = (h * p.dh.double()).sum()
    if p.final_grad is not None:
        loss = loss + sum((x * grad.double()).sum() for x, grad in zip(final, p.final_grad, strict=True))
    leaving = [state for walk in walks for state in walk.leaving]
    leaves = [*wide.values(), *initial, *(C for C, _, _ in leaving), *(n for _, n, _ in leaving)]
    grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)

    slots = [
        (0 if p.cu_seqlens is None else begin // p.chunk_size + n) + c
        for n, (begin, walk) in enumerate(zip(p.bounds, walks, strict=False))
        for c in range(len(walk.leaving))
    ]

    def per_slot(chunks: Iterable[Tensor], *tail: int) -> Tensor:
        result = torch.full((B, H, p.slots, *tail), torch.nan, dtype=torch.float64)
        for slot, x in zip(slots, chunks, strict=True):
            result[:, :, slot] = x.detach()
        return result

    entering = [state for walk in walks for state in walk.entering]
    return Plain(
        *(x.detach() for x in (h, r, m)),
        C=per_slot((C for C, _, _ in entering), Dqk, Dv),
        n=per_slot((n for _, n, _ in entering), Dqk),
        final=tuple(x.detach() for x in final),
        dq=grads[0],
        dk=grads[1],
        dv=grads[2],
        di=grads[3],
        df=grads[4],
        d_initial=grads[5:8],
        C_end=per_slot((C for C, _, _ in leaving), Dqk, Dv),
        n_end=per_slot((n for _, n, _ in leaving), Dqk),
        dC=per_slot(grads[8 : 8 + len(leaving)], Dqk, Dv),
        dn=per_slot(grads[8 + len(leaving) :], Dqk),
    )


def normaliser_factors(p: Problem, x: Plain) -> tuple[Tensor, Tensor, Tensor]:
    """iota, rho, kappa by their formulas."""
    iota = inverse_denominator(p, x.r, x.m)
    dot = (p.dh.double() * x.h).sum(-1) * (p.normalize and p.norm_grad)
    floor = torch.ones_like(x.m) if p.sigmoid_gate else torch.exp(-x.m)
    rho = torch.where(x.r.abs() > floor, -iota * dot * x.r.sign(), 0)
    return iota, rho, torch.zeros_like(iota) if p.sigmoid_gate else -iota * p.eps * dot


def error(actual: Tensor, expected: Tensor, scale: Tensor | None = None) -> float:
    """Relative, Frobenius; infinite where there is a NaN."""
    size = (expected if scale is None else scale).norm().clamp_min(1e-300)
    difference = ((actual.double() - expected).norm() / size).item()
    return difference if difference == difference else float("inf")


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Relative to the largest expected value."""
    size = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance * max(size, 1))
