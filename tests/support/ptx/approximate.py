"""Special functions (.approx): mpmath, and the error that the ISA allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from itertools import product

import mpmath

from .case import Case
from .formats import F64, Real
from .reals import divide, is_infinite, is_nan, number, sign_of, square_root


def exact(f: Callable[[mpmath.mpf], mpmath.mpf]) -> Callable[[Real], Real | mpmath.mpf]:
    def value(a: Real) -> Real | mpmath.mpf:
        return f(mpmath.mpf(a.numerator) / a.denominator) if isinstance(a, Fraction) else a

    return value


def exp2(a: Real) -> object:
    if is_nan(a) or a == math.inf:
        return a
    if a == -math.inf:
        return 0.0
    return Fraction(1) if a == 0 else exact(lambda x: mpmath.power(2, x))(a)


def log2(a: Real) -> object:
    if is_nan(a) or a == math.inf:
        return a
    if a == 0:
        return -math.inf
    return math.nan if a < 0 else exact(lambda x: mpmath.log(x, 2))(a)


def reciprocal_root(a: Real) -> object:
    if is_nan(a):
        return a
    if a == 0:
        return math.copysign(math.inf, sign_of(a))
    if a == math.inf:
        return 0.0
    return math.nan if a < 0 else exact(lambda x: 1 / mpmath.sqrt(x))(a)


def hyperbolic_tangent(a: Real) -> object:
    if is_infinite(a):
        return math.copysign(1.0, a)
    return exact(mpmath.tanh)(a)


# The bounds are those of the ISA.
def approximations() -> Iterable[Case]:
    functions = {
        "ex2": (exp2, 2.0**-22),
        "lg2": (log2, 2.0**-22.6),
        "rcp": (lambda a: divide(Fraction(1), a), 2.0**-23),
        "rsqrt": (reciprocal_root, 2.0**-22.9),
        "sqrt": (lambda a: square_root(a, 32), 2.0**-23),
        "div": (divide, 2.0**-22),
        "tanh": (hyperbolic_tangent, 2.0**-11),
    }
    for (name, (f, bound)), ftz in product(functions.items(), ("", ".ftz")):
        if name == "tanh" and ftz:
            continue
        operands = ("f32", "f32") if name == "div" else ("f32",)
        text = f"{name}.approx{ftz}.f32 $d, $a{', $b' if name == 'div' else ''};"
        expected = lambda *bits, f=f, ftz=bool(ftz): f(*(number("f32", x, ftz) for x in bits))  # noqa: E731
        yield Case(text, "f32", operands, expected, bound=bound, absolute=2.0**-22.6 if name == "lg2" else 0)
    yield Case("rcp.approx.ftz.f64 $d, $a;", "f64", ("f64",), rcp_upper_half, bound=2.0**-19)  # the ISA: "gross"


def rcp_upper_half(a: int) -> Real:
    """Of the upper 32 bits of an f64; subnormal ones are zeros."""
    return divide(Fraction(1), F64.decode(F64.flushed(a & ~0xFFFFFFFF)))
