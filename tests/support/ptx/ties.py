"""Operands whose exact result is a tie of two representable numbers, or lies barely beside one. Random operands are
hardly ever such, and there alone it shows that a result was rounded twice, or that ties go the wrong way."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from fractions import Fraction

from .case import WIDTHS
from .formats import FORMATS, Format

Rows = Callable[[random.Random], list[tuple[int, ...]]]
COUNT = 256  # ties of a case


def narrowing(source: str, target: Format, operands: int = 1) -> Rows:
    """Of a conversion to fewer bits: half-way between neighbours in `target`, and one bit of `source` beside."""
    form = FORMATS[source]
    largest = target.infinity - 1
    ends = [0, 1, 2**target.fraction_bits - 1, 2**target.fraction_bits, largest - 1, largest]

    def operand(random_: random.Random) -> int:
        below = random_.choice([*ends, random_.randint(0, largest), random_.randint(0, largest)])
        value = Fraction(target.decode(below))
        pair = (below, below + 1) if below < largest else (below - 1, below)
        half_step = (Fraction(target.decode(pair[1])) - Fraction(target.decode(pair[0]))) / 2
        tie = form.encode(value + half_step)
        return tie + random_.randint(-1, 1) | random_.choice((0, form.sign))

    return lambda random_: [tuple(operand(random_) for _ in range(operands)) for _ in range(COUNT)]


def integers(source: str, target: str) -> Rows:
    """Of a conversion of integers that have more bits than `target` holds."""
    bits, digits = WIDTHS[source], FORMATS[target].fraction_bits + 1
    magnitude_bits = bits - (source[0] == "s")

    def operand(random_: random.Random) -> int:
        shift = random_.randint(1, magnitude_bits - digits)
        kept = random_.getrandbits(digits) | 1 << (digits - 1)
        value = (kept << shift) + (1 << (shift - 1)) + (random_.randint(-1, 1) if shift > 1 else 0)
        return -value % 2**bits if source[0] == "s" and random_.getrandbits(1) else value

    return lambda random_: [(operand(random_),) for _ in range(COUNT)] if magnitude_bits > digits else []


def whole_numbers(source: str) -> Rows:
    """Of a conversion to integers: where the ranges of their types end, and halves."""
    form = FORMATS[source]
    ends = [Fraction(2) ** k for k in (0, 7, 8, 15, 16, 31, 32, 63, 64)]
    near = [form.encode(end + off) for end in ends for off in (-1, Fraction(-1, 2), 0, Fraction(1, 2))]
    values = [x for bits in near for x in ((bits - 1, bits, bits + 1) if bits else (bits,))]
    return lambda random_: [(x | sign,) for x in values for sign in (0, form.sign)]


def sums(kind: str) -> Rows:
    """A number and half its last bit, a little less or more than that, of either sign."""
    form = FORMATS[kind]
    digits = form.fraction_bits + 1

    def rows(random_: random.Random) -> Iterator[tuple[int, ...]]:
        for _ in range(COUNT):
            unit = random_.choice((-1, 1)) * Fraction(2) ** random_.randint(-digits, 0)
            number = (random_.getrandbits(digits) | 1 << (digits - 1)) * unit
            little = Fraction(random_.randint(-1, 1), 2 ** (digits - 1))
            half = random_.choice((-1, 1)) * unit / 2 * (1 + little)
            yield form.encode(number), form.encode(half)

    return lambda random_: list(rows(random_))


def fused(kind: str) -> Rows:
    """A product that is a tie, and a number too small to matter elsewhere; a number, and a product of nearly half its
    last bit."""
    form = FORMATS[kind]
    digits = form.fraction_bits + 1
    bit = Fraction(1, 2 ** (digits - 1))  # the last one of a number from 1 to 2

    def rows(random_: random.Random) -> Iterator[tuple[int, ...]]:
        for _ in range(COUNT // 2):
            a = 1 + (random_.getrandbits(digits - 3) | 1) * bit  # less than 5 / 4: 3 / 2 * a has one bit too many
            little = random_.choice((-1, 1)) * Fraction(2) ** -random_.randint(2 * digits, 3 * digits)
            yield form.encode(a), form.encode(Fraction(3, 2)), form.encode(little)
            number = Fraction(random_.getrandbits(digits) | 1 << (digits - 1))
            half = random_.choice((-1, 1)) * (1 - bit) / 2
            yield form.encode(1 + bit), form.encode(half), form.encode(number)

    return lambda random_: list(rows(random_))
