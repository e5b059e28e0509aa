"""Instructions of f32 and f64 that the ISA defines to the bit, and comparisons of every type."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from itertools import product

from . import ties
from .case import WIDTHS, Case, integer
from .formats import FORMATS, Real
from .reals import add, divide, floating, is_nan, multiply, number, sign_of, square_root


def least(a: Real, b: Real) -> Real:
    return a if (a, sign_of(a)) <= (b, sign_of(b)) else b


def extreme(kind: str, greatest: bool, nan: bool, ftz: bool) -> Callable[[int, int], int]:
    form = FORMATS[kind]

    def expected(a: int, b: int) -> int:
        x, y = number(kind, a, ftz), number(kind, b, ftz)
        if is_nan(x) or is_nan(y):
            if nan or (is_nan(x) and is_nan(y)):
                return form.nan
            return form.encode(y if is_nan(x) else x)
        smaller = least(x, y)
        larger = y if smaller is x else x
        return form.encode(larger if greatest else smaller)

    return expected


ORDERED = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b, "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
}  # fmt: skip


def comparison(kind: str, name: str, ftz: bool = False) -> Callable[[int, int], bool]:
    def compare(a: int, b: int) -> bool:
        if kind not in FORMATS:
            names = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
            return ORDERED[names.get(name, name)](integer(kind, a), integer(kind, b))
        x, y = number(kind, a, ftz), number(kind, b, ftz)
        unordered = is_nan(x) or is_nan(y)
        if name in ("num", "nan"):
            return unordered == (name == "nan")
        if name.endswith("u") and name[:-1] in ORDERED:
            return unordered or ORDERED[name[:-1]](x, y)
        return not unordered and ORDERED[name](x, y)

    return compare


def comparisons() -> Iterable[Case]:
    def case(k: str, name: str, ftz: str = "") -> Case:
        f = comparison(k, name, bool(ftz))
        return Case(f"setp.{name}{ftz}.{k} $d, $a, $b;", "pred", (k, k), lambda a, b: int(f(a, b)))

    for k in ("s16", "u16", "s32", "u32", "s64", "u64"):
        for name in (*ORDERED, *(("lo", "ls", "hi", "hs") if k[0] == "u" else ())):
            yield case(k, name)
    for k in ("b16", "b32", "b64"):
        yield case(k, "eq")
        yield case(k, "ne")
    for k in ("f32", "f64"):
        for name in (*ORDERED, *(f"{n}u" for n in ORDERED), "num", "nan"):
            yield case(k, name)
    yield case("f32", "lt", ".ftz")
    yield case("f32", "neu", ".ftz")
    combined = {"and": lambda p, c: p & c, "or": lambda p, c: p | c, "xor": lambda p, c: p ^ c}
    for name, f in combined.items():
        compare = comparison("s32", "lt")
        yield Case(f"setp.lt.{name}.s32 $d, $a, $b, $c;", "pred", ("s32", "s32", "pred"),
                   lambda a, b, c, f=f, compare=compare: f(int(compare(a, b)), c))  # fmt: skip
        yield Case(f"setp.lt.{name}.s32 $t|$d, $a, $b, $c;", "pred", ("s32", "s32", "pred"),
                   lambda a, b, c, f=f, compare=compare: f(int(not compare(a, b)), c))  # fmt: skip


def arithmetic_of_floats() -> Iterable[Case]:
    for k, mode in product(("f32", "f64"), ("", "rn", "rz", "rm", "rp")):
        for ftz, sat in product(("", ".ftz"), ("", ".sat")) if k == "f32" else (("", ""),):
            suffix = f"{'.' if mode else ''}{mode}{ftz}{sat}.{k}"
            options = (mode or "rn", bool(ftz), bool(sat))
            yield Case(f"add{suffix} $d, $a, $b;", k, (k, k),
                       floating(k, lambda a, b, m=options[0]: add(a, b, m), *options), hard=ties.sums(k))  # fmt: skip
            yield Case(f"sub{suffix} $d, $a, $b;", k, (k, k),
                       floating(k, lambda a, b, m=options[0]: add(a, -b, m), *options), hard=ties.sums(k))  # fmt: skip
            yield Case(f"mul{suffix} $d, $a, $b;", k, (k, k), floating(k, multiply, *options))
            if mode:
                yield Case(f"fma{suffix} $d, $a, $b, $c;", k, (k, k, k),
                           floating(k, lambda a, b, c, m=options[0]: add(multiply(a, b), c, m), *options),
                           hard=ties.fused(k))  # fmt: skip
    for k, ftz in (("f32", ""), ("f32", ".ftz"), ("f64", "")):
        f = bool(ftz)
        bits = WIDTHS[k]
        yield Case(f"div.rn{ftz}.{k} $d, $a, $b;", k, (k, k), floating(k, divide, "rn", f, False))
        yield Case(f"rcp.rn{ftz}.{k} $d, $a;", k, (k,), floating(k, lambda a: divide(Fraction(1), a), "rn", f, False))
        yield Case(f"sqrt.rn{ftz}.{k} $d, $a;", k, (k,),
                   floating(k, lambda a, n=bits: square_root(a, n), "rn", f, False))  # fmt: skip
        yield Case(f"neg{ftz}.{k} $d, $a;", k, (k,), floating(k, lambda a: -a, "rn", f, False))
        yield Case(f"abs{ftz}.{k} $d, $a;", k, (k,), floating(k, abs, "rn", f, False))
        for name, nan in product(("min", "max"), ("", ".NaN") if k == "f32" else ("",)):
            yield Case(f"{name}{ftz}{nan}.{k} $d, $a, $b;", k, (k, k), extreme(k, name == "max", bool(nan), f))
    for k in ("f32", "f64"):
        magnitude = 2 ** (WIDTHS[k] - 1) - 1
        yield Case(f"copysign.{k} $d, $a, $b;", k, (k, k), lambda a, b, m=magnitude: (a & (m + 1)) | (b & m))
        yield Case(f"selp.{k} $d, $a, $b, $c;", k, (k, k, "pred"), lambda a, b, p: a if p else b)
        yield Case(f"mov.{k} $d, $a;", k, (k,), lambda a: a)
