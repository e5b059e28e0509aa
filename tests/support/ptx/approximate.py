"""Special functions (.approx): mpmath, and the error that the ISA allows."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from fractions import Fraction
from itertools import product

import mpmath

from .case import Case
from .formats import F32, F64, Real
from .reals import divide, is_infinite, is_nan, multiply, number, sign_of, square_root


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


def approximate_quotient(a: Real, b: Real) -> Real:
    """The ISA computes a * (1 / b). Where 1 / b would be subnormal, it is zero."""
    if not is_nan(b) and not is_infinite(b) and abs(b) > 2**126:
        return multiply(a, math.copysign(0.0, b))
    return divide(a, b)


def ranges_of_exp2(_: random.Random) -> list[tuple[int, ...]]:
    """Where a power of two becomes subnormal, zero or infinite."""
    ends = [Fraction(end) + Fraction(step, 8) for end in (-150, -149, -126, 128) for step in range(-8, 9)]
    return [(F32.encode(x),) for x in ends]


def ranges_of_quotients(random_: random.Random) -> list[tuple[int, ...]]:
    """At the least normal number, and with divisors about 2^126."""
    divisors = [Fraction(2) ** exponent for exponent in range(64, 128)]
    rows = [(F32.encode(b / 2**126) + off, F32.encode(b)) for b in divisors for off in (-1, 0, 1)]
    limit = F32.encode(Fraction(2) ** 126)
    return rows + [(F32.encode(Fraction(random_.getrandbits(24))), limit + off) for off in (-1, 0, 1)]


HARD = {"ex2": ranges_of_exp2, "div": ranges_of_quotients}


# The bounds are those of the ISA.
def approximations() -> Iterable[Case]:
    functions = {
        "ex2": (exp2, 2.0**-22),
        "lg2": (log2, 2.0**-22.6),
        "rcp": (lambda a: divide(Fraction(1), a), 2.0**-23),
        "rsqrt": (reciprocal_root, 2.0**-22.9),
        "sqrt": (lambda a: square_root(a, 32), 2.0**-23),
        "div": (approximate_quotient, 2.0**-22),
        "tanh": (hyperbolic_tangent, 2.0**-11),
    }
    for (name, (f, bound)), ftz in product(functions.items(), ("", ".ftz")):
        if name == "tanh" and ftz:
            continue
        operands = ("f32", "f32") if name == "div" else ("f32",)
        text = f"{name}.approx{ftz}.f32 $d, $a{', $b' if name == 'div' else ''};"
        expected = lambda *bits, f=f, ftz=bool(ftz): f(*(number("f32", x, ftz) for x in bits))  # noqa: E731
        yield Case(text, "f32", operands, expected, bound=bound, absolute=2.0**-22.6 if name == "lg2" else 0,
                   hard=HARD.get(name, lambda _: []))  # fmt: skip
    text = "rcp.approx.ftz.f64 $d, $a;"
    yield Case(text, "f64", ("f64",), rcp_upper_half, bound=2.0**-19, zeros=0xFFFFFFFF)  # the ISA: "gross"


def rcp_upper_half(a: int) -> Real | int:
    """Of the upper 32 bits of an f64; subnormal ones are zeros. The ISA gives the bits of a NaN."""
    x = F64.decode(F64.flushed(a & ~0xFFFFFFFF))
    return 0x7FFFFFFF00000000 if is_nan(x) else divide(Fraction(1), x)
