"""cvt: between integers, floating point and the 16-bit types."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from itertools import product

from . import ties
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
    for source, target in product(kinds, ("f32", "f64")):
        yield Case(f"cvt.rn.{target}.{source} $d, $a;", target, (source,), integer_to_float(source, target, "rn"),
                   hard=ties.integers(source, target))  # fmt: skip
    for source, target, mode, ftz in product(("f32", "f64"), kinds, WHOLE, ("", ".ftz")):
        if not ftz or (source == "f32" and target in ("s32", "u64")):
            yield Case(f"cvt.{mode}{ftz}.{target}.{source} $d, $a;", target, (source,),
                       float_to_integer(source, target, mode, bool(ftz)), hard=ties.whole_numbers(source))  # fmt: skip
    for k, mode in product(("f32", "f64"), WHOLE):
        yield Case(f"cvt.{mode}.{k}.{k} $d, $a;", k, (k,),
                   lambda a, k=k, mode=mode: FORMATS[k].encode(whole_number(number(k, a), mode)))  # fmt: skip
    for mode in WHOLE:
        yield Case(f"cvt.{mode}.ftz.f32.f32 $d, $a;", "f32", ("f32",),
                   lambda a, mode=mode: F32.encode(whole_number(number("f32", a, True), mode)))  # fmt: skip
    narrower = ties.narrowing("f64", F32)
    yield Case("cvt.f64.f32 $d, $a;", "f64", ("f32",), lambda a: F64.encode(F32.decode(a)))
    yield Case("cvt.ftz.f64.f32 $d, $a;", "f64", ("f32",), lambda a: F64.encode(number("f32", a, True)))
    yield Case("cvt.rn.f32.f64 $d, $a;", "f32", ("f64",), lambda a: F32.encode(F64.decode(a)), hard=narrower)
    yield Case("cvt.rn.ftz.f32.f64 $d, $a;", "f32", ("f64",),
               lambda a: F32.flushed(F32.encode(F64.decode(a))), hard=narrower)  # fmt: skip
    yield Case("cvt.sat.f32.f32 $d, $a;", "f32", ("f32",), lambda a: rounded_to("f32", F32.decode(a), "rn", sat=True))
    yield Case(
        "cvt.ftz.sat.f32.f32 $d, $a;", "f32", ("f32",), lambda a: rounded_to("f32", F32.decode(a), "rn", True, True)
    )
    for half, form in (("f16", F16), ("bf16", BF16)):
        yield Case(f"cvt.f32.{half} $d, $a;", "f32", (half,), lambda a, form=form: F32.encode(form.decode(a)))
        yield Case(f"cvt.rn.{half}.f32 $d, $a;", half, ("f32",), lambda a, form=form: form.encode(F32.decode(a)),
                   hard=ties.narrowing("f32", form))  # fmt: skip
        yield Case(f"cvt.rn.{half}x2.f32 $d, $a, $b;", "b32", ("f32", "f32"),
                   lambda a, b, form=form: form.encode(F32.decode(a)) << 16 | form.encode(F32.decode(b)),
                   hard=ties.narrowing("f32", form, operands=2))  # fmt: skip
    yield Case("cvt.sat.f32.f16 $d, $a;", "f32", ("f16",), lambda a: rounded_to("f32", F16.decode(a), "rn", sat=True))
    for mode in ("rna", "rn", "rz"):
        yield Case(f"cvt.{mode}.tf32.f32 $d, $a;", "b32", ("f32",), tf32(mode), hard=ties.narrowing("f32", TF32))
    yield from wider_registers()


def wider_registers() -> Iterable[Case]:
    """What a register has above a result of fewer bits: the sign of a signed one, else zeros."""
    for target, register in product(("s8", "u8", "s16", "u16"), ("b32", "b64")):
        yield Case(f"cvt.{target}.s64 $d, $a;", register, ("s64",),
                   lambda a, k=target, n=WIDTHS[register]: mask(integer(k, mask(a, WIDTHS[k])), n))  # fmt: skip
    yield Case("cvt.rn.f16.f32 $d, $a;", "b32", ("f32",), lambda a: F16.encode(F32.decode(a)))
