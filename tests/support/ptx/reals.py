"""Arithmetic of floating-point values, exactly: on fractions, infinities, NaN and zeros with their signs."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from .formats import FORMATS, Real, floor_log2


def number(kind: str, bits: int, ftz: bool = False) -> Real:
    form = FORMATS[kind]
    return form.decode(form.flushed(bits) if ftz else bits)


def is_nan(x: Real) -> bool:
    return isinstance(x, float) and math.isnan(x)


def is_infinite(x: Real) -> bool:
    return isinstance(x, float) and math.isinf(x)


def sign_of(x: Real) -> float:
    return math.copysign(1, x)


def add(a: Real, b: Real, mode: str) -> Real:
    if is_nan(a) or is_nan(b) or (is_infinite(a) and is_infinite(b) and a != b):
        return math.nan
    if is_infinite(a) or is_infinite(b):
        return a if is_infinite(a) else b
    total = Fraction(a) + Fraction(b)
    if total:
        return total
    if a == 0 and b == 0 and sign_of(a) == sign_of(b):
        return a
    return -0.0 if mode == "rm" else 0.0


def multiply(a: Real, b: Real) -> Real:
    if is_nan(a) or is_nan(b):
        return math.nan
    sign = sign_of(a) * sign_of(b)
    if is_infinite(a) or is_infinite(b):
        return math.nan if a == 0 or b == 0 else math.copysign(math.inf, sign)
    return Fraction(a) * Fraction(b) if a and b else math.copysign(0.0, sign)


def divide(a: Real, b: Real) -> Real:
    if is_nan(a) or is_nan(b) or (is_infinite(a) and is_infinite(b)) or (a == 0 and b == 0):
        return math.nan
    sign = sign_of(a) * sign_of(b)
    if is_infinite(a) or b == 0:
        return math.copysign(math.inf, sign)
    return math.copysign(0.0, sign) if is_infinite(b) or a == 0 else Fraction(a) / Fraction(b)


def square_root(a: Real, form_bits: int) -> Real:
    """Rounded to odd far beyond the format, so that its own rounding is right."""
    if is_nan(a) or a == 0 or a == math.inf:
        return a
    if a < 0:
        return math.nan
    x = Fraction(a)
    shift = 2 * (form_bits + 8) - floor_log2(x)
    shift += shift % 2
    scaled = x * Fraction(2) ** shift
    whole = scaled.numerator // scaled.denominator
    root = math.isqrt(whole)
    exact = scaled.denominator == 1 and root * root == whole
    return Fraction(root if exact else root | 1) / Fraction(2) ** (shift // 2)


def rounded_to(kind: str, x: Real, mode: str, ftz: bool = False, sat: bool = False) -> int:
    form = FORMATS[kind]
    bits = form.encode(x, mode)
    bits = form.flushed(bits) if ftz else bits
    if sat:
        value = form.decode(bits)
        bits = 0 if is_nan(value) or value <= 0 else min(bits, form.encode(Fraction(1)))
    return bits


def floating(kind: str, f: Callable[..., Real], mode: str, ftz: bool, sat: bool) -> Callable[..., int]:
    return lambda *operands: rounded_to(kind, f(*(number(kind, x, ftz) for x in operands)), mode, ftz, sat)
