"""Integer and bit instructions, and those of predicates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product

from .case import WIDTHS, Case, integer, mask


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
