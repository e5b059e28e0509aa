"""What the lanes of a warp do together. `expected` takes the operands of all of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from itertools import product

from .case import WARP, Case, integer, mask

Row = list[tuple[int, ...]]


def shuffle(mode: str, valid: bool) -> Callable[[Row], list[int]]:
    """The pseudocode of the ISA; the predicate says whether the source lane lies in the segment."""

    def expected(rows: Row) -> list[int]:
        results = []
        for lane, (own, b, c) in enumerate(rows):
            n, segment, clamp = b & 31, c >> 8 & 31, c & 31
            most = lane & segment | clamp & ~segment & 31
            least_lane = lane & segment
            source = {"up": lane - n, "down": lane + n, "bfly": lane ^ n, "idx": least_lane | n & ~segment & 31}[mode]
            inside = source >= most if mode == "up" else source <= most
            results.append(int(inside) if valid else rows[source][0] if inside else own)
        return results

    return expected


def reduction(kind: str, f: Callable[[int, int], int]) -> Callable[[Row], list[int]]:
    def expected(rows: Row) -> list[int]:
        total = integer(kind, rows[0][0])
        for (x,) in rows[1:]:
            total = f(total, integer(kind, x))
        return [mask(total, 32)] * len(rows)

    return expected


def unanimous(random_: random.Random) -> Row:
    """Warps whose lanes agree, or all but one of them."""
    rows: Row = []
    for value, other in product((0, 1), (0, 1)):
        warp = [(value,)] * WARP
        warp[random_.randrange(WARP)] = (other,)
        rows += warp
    return rows


def alike(random_: random.Random) -> Row:
    """Warps of two values that differ in one bit."""
    rows: Row = []
    for bit in range(32):
        value = random_.getrandbits(32)
        rows += [(random_.choice((value, value ^ 1 << bit)),) for _ in range(WARP)]
    return rows


def warps() -> Iterable[Case]:
    for mode in ("up", "down", "bfly", "idx"):
        three = ("b32", "b32", "b32")
        yield Case(f"shfl.sync.{mode}.b32 $d|$p, $a, $b, $c, -1;", "b32", three, shuffle(mode, False), lanes=True)
        yield Case(f"shfl.sync.{mode}.b32 $t|$d, $a, $b, $c, -1;", "pred", three, shuffle(mode, True), lanes=True)
    ballot = lambda rows: sum(p << lane for lane, (p,) in enumerate(rows))  # noqa: E731
    full = 2**WARP - 1
    votes = {
        "ballot.b32": ballot,
        "any.pred": lambda r: int(ballot(r) != 0),
        "all.pred": lambda r: int(ballot(r) == full),
    }
    for mode, vote in votes.items():
        yield Case(f"vote.sync.{mode} $d, $a, -1;", mode.split(".")[1], ("pred",),
                   lambda r, vote=vote: [vote(r)] * WARP, lanes=True, hard=unanimous)  # fmt: skip
    functions: dict[str, Callable[[int, int], int]] = {"add": lambda a, b: a + b, "min": min, "max": max}
    for name, kind in product(functions, ("u32", "s32")):
        yield Case(f"redux.sync.{name}.{kind} $d, $a, -1;", kind, (kind,), reduction(kind, functions[name]), lanes=True)
    bitwise = {"and": lambda a, b: a & b, "or": lambda a, b: a | b, "xor": lambda a, b: a ^ b}
    for name, f in bitwise.items():
        yield Case(f"redux.sync.{name}.b32 $d, $a, -1;", "b32", ("b32",), reduction("b32", f), lanes=True)
    equals = lambda rows: [sum((y == x) << lane for lane, y in enumerate(rows)) for x in rows]  # noqa: E731
    yield Case("match.any.sync.b32 $d, $a, -1;", "b32", ("b32",), equals, lanes=True, hard=alike)
    lanes = range(WARP)
    yield Case("mov.u32 $d, %laneid;", "u32", ("u32",), lambda _: [*lanes], lanes=True)
    yield Case("mov.u32 $d, %lanemask_lt;", "u32", ("u32",), lambda _: [2**lane - 1 for lane in lanes], lanes=True)
