"""Cases: an instruction, what its operands are, and what it must compute of them, from the text of the PTX ISA."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

import mpmath

from .formats import BF16, F16, F32, F64, FORMATS, TF32, Real, floor_log2, rounded

COUNT = 2048  # random operands of a case, beside its corners
WARP = 32
WIDTHS = {"pred": 32} | {f"{c}{n}": n for c in "usb" for n in (8, 16, 32, 64)} | {"f16x2": 32, "bf16x2": 32, "tf32": 32}
WIDTHS |= {name: form.bits for name, form in FORMATS.items()}


@dataclass(frozen=True)
class Case:
    """`text` has $d for the result and $a, $b, $c for the operands. `expected` takes their bits and gives those of the
    result, for each element; where `lanes` is true, for the operands of a warp at once. `bound`: the result may be off
    by this much relative to the exact value that `expected` gives, or by `absolute`."""

    text: str
    result: str
    operands: tuple[str, ...]
    expected: Callable[..., object]
    lanes: bool = False
    bound: float = 0.0
    absolute: float = 0.0

    @property
    def opcode(self) -> str:
        return self.text.split()[0].rstrip(";")


def corners(kind: str) -> list[int]:
    """Bits at which instructions change their minds."""
    bits = WIDTHS[kind]
    if kind == "pred":
        return [0, 1]
    if kind in FORMATS:
        form = FORMATS[kind]
        one = form.encode(Fraction(1))
        positive = [0, 1, 2**form.fraction_bits - 1, 2**form.fraction_bits, one - 1, one, one + 1, form.infinity - 1]
        positive += [
            form.infinity,
            form.infinity + 1,
            form.nan,
            form.encode(Fraction(3, 2)),
            form.encode(Fraction(5, 2)),
        ]
        return positive + [x | form.sign for x in positive]
    ones = 2**bits - 1
    small = [0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 33, 63, 64, 255, 256]
    return [x & ones for x in (*small, ones, ones - 1, ones >> 1, (ones >> 1) + 1, ones >> 2)]


def drawn(kind: str, random_: random.Random) -> int:
    """Random bits: of floating point either any, or of moderate size, so that sums do not vanish beside each other."""
    bits = WIDTHS[kind]
    if kind == "pred":
        return random_.getrandbits(1)
    if kind in FORMATS and random_.random() < 0.7:
        form = FORMATS[kind]
        value = Fraction(random_.getrandbits(60) - 2**59, 2 ** random_.randrange(50, 70))
        return form.encode(value)
    if random_.random() < 0.3:
        return random_.getrandbits(random_.randrange(1, bits + 1))
    return random_.getrandbits(bits)


def inputs(case: Case, random_: random.Random) -> list[tuple[int, ...]]:
    """Corners of all operands together, as far as these are not too many, and random ones; of whole warps."""
    sets = [corners(kind) for kind in case.operands]
    crossed = list(product(*sets))
    if len(crossed) > COUNT:
        crossed = random_.sample(crossed, COUNT)
    rows = crossed + [tuple(drawn(kind, random_) for kind in case.operands) for _ in range(COUNT)]
    return rows[: len(rows) // WARP * WARP] if case.lanes else rows


# ---- integers ----
def signed(x: int, bits: int) -> int:
    return x - 2**bits if x >> (bits - 1) & 1 else x


def integer(kind: str, x: int) -> int:
    return signed(x, WIDTHS[kind]) if kind[0] == "s" else x


def mask(x: int, bits: int) -> int:
    return x & (2**bits - 1)


def arithmetic(kind: str, f: Callable[..., int], result: str = "") -> Callable[..., int]:
    """`f` of the operands as whole numbers, cut to the result's width."""
    return lambda *operands: mask(f(*(integer(kind, x) for x in operands)), WIDTHS[result or kind])


def truncated(a: int, b: int) -> tuple[int, int]:
    """Quotient towards zero, and the remainder with the sign of the dividend. By zero: all ones, and the dividend."""
    if b == 0:
        return -1, a
    quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return quotient, a - quotient * b


def prmt(a: int, b: int, selector: int) -> int:
    data = (b << 32 | a).to_bytes(8, "little")
    result = 0
    for position in range(4):
        nibble = selector >> 4 * position & 15
        byte = data[nibble & 7]
        result |= ((255 if byte & 128 else 0) if nibble & 8 else byte) << 8 * position
    return result


def lop3(table: int) -> Callable[[int, int, int], int]:
    def expected(a: int, b: int, c: int) -> int:
        result = 0
        for bit in range(32):
            index = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | (c >> bit & 1)
            result |= (table >> index & 1) << bit
        return result

    return expected


def bfi(bits: int) -> Callable[[int, int, int, int], int]:
    def expected(a: int, b: int, position: int, length: int) -> int:
        position, length = position & 255, length & 255
        for i in range(length):
            if position + i < bits:
                b = b & ~(1 << (position + i)) | (a >> i & 1) << (position + i)
        return b

    return expected


def bfe(kind: str) -> Callable[[int, int, int], int]:
    """The ISA's own description, bit by bit."""
    bits = WIDTHS[kind]

    def expected(a: int, position: int, length: int) -> int:
        position, length = position & 255, length & 255
        sign = 0 if kind[0] == "u" or length == 0 else a >> min(position + length - 1, bits - 1) & 1
        result = 0
        for i in range(bits):
            result |= (a >> (position + i) & 1 if i < length and position + i < bits else sign) << i
        return result

    return expected


def bfind(kind: str, shift: bool) -> Callable[[int], int]:
    bits = WIDTHS[kind]

    def expected(a: int) -> int:
        if kind[0] == "s" and a >> (bits - 1):
            a = mask(~a, bits)
        position = a.bit_length() - 1
        return 2**32 - 1 if position < 0 else bits - 1 - position if shift else position

    return expected


def shifted_left(a: int, n: int, bits: int) -> int:
    return mask(a << min(n, bits), bits)


def shifted_right(kind: str) -> Callable[[int, int], int]:
    return lambda a, n: mask(integer(kind, a) >> min(n, WIDTHS[kind]), WIDTHS[kind])


def funnel(left: bool, wrap: bool) -> Callable[[int, int, int], int]:
    def expected(a: int, b: int, n: int) -> int:
        n = n & 31 if wrap else min(n, 32)
        both = b << 32 | a
        return mask(both << n >> 32 if left else both >> n, 32)

    return expected


def integers() -> Iterable[Case]:
    def case(text: str, result: str, operands: str, expected: Callable[..., int]) -> Case:
        return Case(text, result, tuple(operands.split()), expected)

    for k in ("s16", "u16", "s32", "u32", "s64", "u64"):
        bits, two = WIDTHS[k], f"{k} {k}"
        yield case(f"add.{k} $d, $a, $b;", k, two, arithmetic(k, lambda a, b: a + b))
        yield case(f"sub.{k} $d, $a, $b;", k, two, arithmetic(k, lambda a, b: a - b))
        yield case(f"mul.lo.{k} $d, $a, $b;", k, two, arithmetic(k, lambda a, b: a * b))
        yield case(f"mul.hi.{k} $d, $a, $b;", k, two, arithmetic(k, lambda a, b, n=bits: a * b >> n))
        yield case(f"mad.lo.{k} $d, $a, $b, $c;", k, f"{two} {k}", arithmetic(k, lambda a, b, c: a * b + c))
        yield case(f"div.{k} $d, $a, $b;", k, two, arithmetic(k, lambda a, b: truncated(a, b)[0]))
        yield case(f"rem.{k} $d, $a, $b;", k, two, arithmetic(k, lambda a, b: truncated(a, b)[1]))
        yield case(f"min.{k} $d, $a, $b;", k, two, arithmetic(k, min))
        yield case(f"max.{k} $d, $a, $b;", k, two, arithmetic(k, max))
        yield case(f"shr.{k} $d, $a, $b;", k, f"{k} u32", shifted_right(k))
        if k[0] == "s":
            yield case(f"neg.{k} $d, $a;", k, k, arithmetic(k, lambda a: -a))
            yield case(f"abs.{k} $d, $a;", k, k, arithmetic(k, abs))
        if bits < 64:
            wide = f"{k[0]}{2 * bits}"
            yield case(f"mul.wide.{k} $d, $a, $b;", wide, two, arithmetic(k, lambda a, b: a * b, wide))
            yield case(f"mad.wide.{k} $d, $a, $b, $c;", wide, f"{two} {wide}",
                       lambda a, b, c, k=k, n=2 * bits: mask(integer(k, a) * integer(k, b) + c, n))  # fmt: skip
    for k in ("b16", "b32", "b64"):
        bits, two = WIDTHS[k], f"{k} {k}"
        yield case(f"and.{k} $d, $a, $b;", k, two, lambda a, b: a & b)
        yield case(f"or.{k} $d, $a, $b;", k, two, lambda a, b: a | b)
        yield case(f"xor.{k} $d, $a, $b;", k, two, lambda a, b: a ^ b)
        yield case(f"not.{k} $d, $a;", k, k, lambda a, n=bits: mask(~a, n))
        yield case(f"shl.{k} $d, $a, $b;", k, f"{k} u32", lambda a, n, bits=bits: shifted_left(a, n, bits))
    for letter, bits in product("bus", (16, 32, 64)):
        k = f"{letter}{bits}"
        yield case(f"mov.{k} $d, $a;", k, k, lambda a: a)
        yield case(f"selp.{k} $d, $a, $b, $c;", k, f"{k} {k} pred", lambda a, b, p: a if p else b)
    for k in ("b32", "b64"):
        bits = WIDTHS[k]
        yield case(f"clz.{k} $d, $a;", "u32", k, lambda a, n=bits: n - a.bit_length())
        yield case(f"popc.{k} $d, $a;", "u32", k, lambda a: a.bit_count())
        yield case(f"brev.{k} $d, $a;", k, k, lambda a, n=bits: int(f"{a:0{n}b}"[::-1], 2))
        yield case(f"bfi.{k} $d, $a, $b, $c, $e;", k, f"{k} {k} u32 u32", bfi(bits))
    for k in ("s32", "u32", "s64", "u64"):
        yield case(f"bfe.{k} $d, $a, $b, $c;", k, f"{k} u32 u32", bfe(k))
        yield case(f"bfind.{k} $d, $a;", "u32", k, bfind(k, False))
        yield case(f"bfind.shiftamt.{k} $d, $a;", "u32", k, bfind(k, True))
    for side, mode in product(("l", "r"), ("wrap", "clamp")):
        yield case(f"shf.{side}.{mode}.b32 $d, $a, $b, $c;", "b32", "b32 b32 u32", funnel(side == "l", mode == "wrap"))
    yield case("prmt.b32 $d, $a, $b, $c;", "b32", "b32 b32 b32", prmt)
    for table in (0x00, 0x01, 0x1A, 0x3C, 0x80, 0x96, 0xCA, 0xD8, 0xE8, 0xFE, 0xFF):
        yield case(f"lop3.b32 $d, $a, $b, $c, {table};", "b32", "b32 b32 b32", lop3(table))
    # pieces of a register
    yield case("mov.b64 {$t, $d}, $a;", "b32", "b64", lambda a: a >> 32)
    yield case("mov.b64 $d, {$a, $b};", "b64", "b32 b32", lambda a, b: b << 32 | a)
    yield case("mov.b32 $d, {$a, $b};", "b32", "b16 b16", lambda a, b: b << 16 | a)
    yield case("mov.b32 {$d, $t}, $a;", "b16", "b32", lambda a: a & 0xFFFF)


def predicates() -> Iterable[Case]:
    two = ("pred", "pred")
    yield Case("and.pred $d, $a, $b;", "pred", two, lambda a, b: a & b)
    yield Case("or.pred $d, $a, $b;", "pred", two, lambda a, b: a | b)
    yield Case("xor.pred $d, $a, $b;", "pred", two, lambda a, b: a ^ b)
    yield Case("not.pred $d, $a;", "pred", ("pred",), lambda a: 1 - a)
    yield Case("mov.pred $d, $a;", "pred", ("pred",), lambda a: a)


# ---- floating point ----
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
                       floating(k, lambda a, b, m=options[0]: add(a, b, m), *options))  # fmt: skip
            yield Case(f"sub{suffix} $d, $a, $b;", k, (k, k),
                       floating(k, lambda a, b, m=options[0]: add(a, -b, m), *options))  # fmt: skip
            yield Case(f"mul{suffix} $d, $a, $b;", k, (k, k), floating(k, multiply, *options))
            if mode:
                yield Case(f"fma{suffix} $d, $a, $b, $c;", k, (k, k, k),
                           floating(k, lambda a, b, c, m=options[0]: add(multiply(a, b), c, m), *options))  # fmt: skip
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


# ---- special functions: mpmath, and the error that the ISA allows ----
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


# ---- conversions ----
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


# ---- lanes of a warp together ----
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


def warps() -> Iterable[Case]:
    for mode in ("up", "down", "bfly", "idx"):
        three = ("b32", "b32", "b32")
        yield Case(f"shfl.sync.{mode}.b32 $d|$p, $a, $b, $c, -1;", "b32", three, shuffle(mode, False), lanes=True)
        yield Case(f"shfl.sync.{mode}.b32 $t|$d, $a, $b, $c, -1;", "pred", three, shuffle(mode, True), lanes=True)
    ballot = lambda rows: sum(p << lane for lane, (p,) in enumerate(rows))  # noqa: E731
    full = 2**WARP - 1
    yield Case("vote.sync.ballot.b32 $d, $a, -1;", "b32", ("pred",), lambda r: [ballot(r)] * WARP, lanes=True)
    yield Case("vote.sync.any.pred $d, $a, -1;", "pred", ("pred",), lambda r: [int(ballot(r) != 0)] * WARP, lanes=True)
    yield Case("vote.sync.all.pred $d, $a, -1;", "pred", ("pred",),
               lambda r: [int(ballot(r) == full)] * WARP, lanes=True)  # fmt: skip
    functions = {"add": lambda a, b: a + b, "min": min, "max": max}
    for name, kind in product(functions, ("u32", "s32")):
        yield Case(f"redux.sync.{name}.{kind} $d, $a, -1;", kind, (kind,), reduction(kind, functions[name]), lanes=True)
    bitwise = {"and": lambda a, b: a & b, "or": lambda a, b: a | b, "xor": lambda a, b: a ^ b}
    for name, f in bitwise.items():
        yield Case(f"redux.sync.{name}.b32 $d, $a, -1;", "b32", ("b32",), reduction("b32", f), lanes=True)
    equals = lambda rows: [sum((y == x) << lane for lane, y in enumerate(rows)) for x in rows]  # noqa: E731
    yield Case("match.any.sync.b32 $d, $a, -1;", "b32", ("b32",), equals, lanes=True)


CASES: list[Case] = [
    *integers(), *predicates(), *comparisons(), *arithmetic_of_floats(), *approximations(), *conversions(), *warps(),
]  # fmt: skip
