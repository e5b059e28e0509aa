"""cvt: between integers, floating point and the 16-bit types."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from itertools import product

from .case import WIDTHS, Case, integer, mask
from .formats import BF16, F16, F32, F64, FORMATS, TF32, Real, rounded
from .integers import arithmetic
from .reals import is_infinite, is_nan, number, rounded_to

WHOLE = {"rni": "rn", "rzi": "rz", "rmi": "rm", "rpi": "rp"}


def whole_number(x: Real, mode: str) -> Real:
    """To a whole number, as a floating-point value: its zero keeps the sign."""
    if isinstance(x, float):
        return x
    whole = rounded(abs(x), WHOLE[mode], x < 0)
    return Fraction(whole if x > 0 else -whole) if whole else math.copysign(0.0, x)


def float_to_integer(source: str, target: str, mode: str, ftz: bool) -> Callable[[int], int]:
    bits = WIDTHS[target]
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if target[0] == "s" else (0, 2**bits - 1)

    def expected(a: int) -> int:
        x = number(source, a, ftz)
        if is_nan(x):
            return 2 ** (bits - 1) if bits == 64 or source == "f64" else 0
        if is_infinite(x):
            return mask(high if x > 0 else low, bits)
        return mask(max(low, min(high, int(whole_number(x, mode)))), bits)

    return expected


def integer_to_float(source: str, target: str, mode: str) -> Callable[[int], int]:
    return lambda a: FORMATS[target].encode(Fraction(integer(source, a)), mode)


def tf32(mode: str) -> Callable[[int], int]:
    """Nineteen bits at the top of an f32."""

    def expected(a: int) -> int:
        x = F32.decode(a)
        return F32.nan if is_nan(x) else TF32.encode(x, mode) << 13

    return expected


def conversions() -> Iterable[Case]:
    kinds = [f"{c}{n}" for c in "su" for n in (8, 16, 32, 64)]
    for source, target in product(kinds, kinds):
        if source != target:
            yield Case(f"cvt.{target}.{source} $d, $a;", target, (source,), arithmetic(source, lambda a: a, target))
    for source, target in product(("s32", "u32", "s64"), ("s8", "u8", "s16", "u16", "s32", "u32")):
        bits = WIDTHS[target]
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if target[0] == "s" else (0, 2**bits - 1)
        if bits < WIDTHS[source]:
            yield Case(f"cvt.sat.{target}.{source} $d, $a;", target, (source,),
                       arithmetic(source, lambda a, low=low, high=high: max(low, min(high, a)), target))  # fmt: skip
    for source, target in product(("s32", "u32", "s64", "u64", "s16", "u16"), ("f32", "f64")):
        yield Case(f"cvt.rn.{target}.{source} $d, $a;", target, (source,), integer_to_float(source, target, "rn"))
    for source, target, mode in product(("f32", "f64"), ("s32", "u32", "s64", "u64"), WHOLE):
        yield Case(f"cvt.{mode}.{target}.{source} $d, $a;", target, (source,),
                   float_to_integer(source, target, mode, False))  # fmt: skip
    yield Case("cvt.rni.ftz.s32.f32 $d, $a;", "s32", ("f32",), float_to_integer("f32", "s32", "rni", True))
    for k, mode in product(("f32", "f64"), WHOLE):
        yield Case(f"cvt.{mode}.{k}.{k} $d, $a;", k, (k,),
                   lambda a, k=k, mode=mode: FORMATS[k].encode(whole_number(number(k, a), mode)))  # fmt: skip
    yield Case("cvt.f64.f32 $d, $a;", "f64", ("f32",), lambda a: F64.encode(F32.decode(a)))
    yield Case("cvt.rn.f32.f64 $d, $a;", "f32", ("f64",), lambda a: F32.encode(F64.decode(a)))
    yield Case("cvt.rn.ftz.f32.f64 $d, $a;", "f32", ("f64",), lambda a: F32.flushed(F32.encode(F64.decode(a))))
    yield Case("cvt.sat.f32.f32 $d, $a;", "f32", ("f32",), lambda a: rounded_to("f32", F32.decode(a), "rn", sat=True))
    yield Case(
        "cvt.ftz.sat.f32.f32 $d, $a;", "f32", ("f32",), lambda a: rounded_to("f32", F32.decode(a), "rn", True, True)
    )
    for half, form in (("f16", F16), ("bf16", BF16)):
        yield Case(f"cvt.f32.{half} $d, $a;", "f32", (half,), lambda a, form=form: F32.encode(form.decode(a)))
        yield Case(f"cvt.rn.{half}.f32 $d, $a;", half, ("f32",), lambda a, form=form: form.encode(F32.decode(a)))
        yield Case(f"cvt.rn.{half}x2.f32 $d, $a, $b;", "b32", ("f32", "f32"),
                   lambda a, b, form=form: form.encode(F32.decode(a)) << 16 | form.encode(F32.decode(b)))  # fmt: skip
    yield Case("cvt.rna.tf32.f32 $d, $a;", "b32", ("f32",), tf32("rna"))
    yield Case("cvt.rn.tf32.f32 $d, $a;", "b32", ("f32",), tf32("rn"))
    yield Case("cvt.rz.tf32.f32 $d, $a;", "b32", ("f32",), tf32("rz"))
