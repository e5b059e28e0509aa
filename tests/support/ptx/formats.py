"""Floating-point formats, exactly: bits to rational numbers and back, in every rounding mode."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

INFINITY, NAN = math.inf, math.nan
Real = Fraction | float  # a float where it is infinite, a NaN, or a zero with its sign


@dataclass(frozen=True)
class Format:
    bits: int
    exponent_bits: int
    nan: int  # the one that instructions make

    @property
    def fraction_bits(self) -> int:
        return self.bits - 1 - self.exponent_bits

    @property
    def least_exponent(self) -> int:
        """Of a normal number 1.xxx * 2^e."""
        return 2 - 2 ** (self.exponent_bits - 1)

    @property
    def sign(self) -> int:
        return 1 << (self.bits - 1)

    @property
    def infinity(self) -> int:
        return ((1 << self.exponent_bits) - 1) << self.fraction_bits

    def decode(self, bits: int) -> Real:
        negative = bits & self.sign
        magnitude = bits & (self.sign - 1)
        if magnitude > self.infinity:
            return NAN
        if magnitude == self.infinity:
            return -INFINITY if negative else INFINITY
        if not magnitude:
            return -0.0 if negative else 0.0
        exponent, fraction = divmod(magnitude, 1 << self.fraction_bits)
        if exponent:
            fraction += 1 << self.fraction_bits
        scale = max(exponent, 1) - 1 + self.least_exponent - self.fraction_bits
        value = Fraction(fraction) * Fraction(2) ** scale
        return -value if negative else value

    def encode(self, x: Real, mode: str = "rn") -> int:
        """The nearest representable number in this direction: rn, rna, rz, rm or rp."""
        if isinstance(x, float):
            if math.isnan(x):
                return self.nan
            return (self.sign if math.copysign(1, x) < 0 else 0) | (self.infinity if math.isinf(x) else 0)
        if not x:
            return 0
        negative, x = x < 0, abs(x)
        exponent = max(floor_log2(x), self.least_exponent)
        units = x / Fraction(2) ** (exponent - self.fraction_bits)
        whole = rounded(units, mode, negative)
        largest = (1 << (self.fraction_bits + 1)) - 1
        if whole > largest:  # to the next power of two
            whole, exponent = 1 << self.fraction_bits, exponent + 1
        if exponent > 1 - self.least_exponent:
            to_infinity = mode in ("rn", "rna") or mode == ("rm" if negative else "rp")
            magnitude = self.infinity if to_infinity else self.infinity - 1
        elif whole < 1 << self.fraction_bits:  # subnormal
            magnitude = whole
        else:
            magnitude = ((exponent - self.least_exponent) << self.fraction_bits) + whole
        return magnitude | (self.sign if negative else 0)

    def is_subnormal(self, bits: int) -> bool:
        return 0 < bits & (self.sign - 1) < 1 << self.fraction_bits

    def flushed(self, bits: int) -> int:
        """.ftz: a subnormal number as a zero of its sign."""
        return bits & self.sign if self.is_subnormal(bits) else bits


def floor_log2(x: Fraction) -> int:
    guess = x.numerator.bit_length() - x.denominator.bit_length()
    return guess if Fraction(2) ** guess <= x else guess - 1


def rounded(x: Fraction, mode: str, negative: bool) -> int:
    """A positive number to a whole one, in the direction that `mode` has for a number of this sign."""
    whole, rest = divmod(x.numerator, x.denominator)
    if mode in ("rn", "rna"):
        twice = 2 * rest - x.denominator
        return whole + (twice > 0 or (twice == 0 and (mode == "rna" or whole % 2 == 1)))
    away = mode == ("rm" if negative else "rp")
    return whole + (away and rest > 0)


F16 = Format(16, 5, 0x7FFF)
BF16 = Format(16, 8, 0x7FFF)
TF32 = Format(19, 8, 0x3FFFF)
F32 = Format(32, 8, 0x7FFFFFFF)
F64 = Format(64, 11, 0x7FF8000000000000)
FORMATS = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64}
