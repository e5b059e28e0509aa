"""A case: an instruction, its operands, and what it must compute of them; and the operands that it is tried on."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

from .formats import FORMATS

COUNT = 2048  # random operands of a case, beside its corners
WARP = 32
WIDTHS = {"pred": 32} | {f"{c}{n}": n for c in "usb" for n in (8, 16, 32, 64)} | {"f16x2": 32, "bf16x2": 32, "tf32": 32}
WIDTHS |= {name: form.bits for name, form in FORMATS.items()}


@dataclass(frozen=True)
class Case:
    """`text` has $d for the result and $a, $b, $c, $e for the operands, $t and $w for other ones, &d and &a for the
    place of an element of the array. `expected` takes the operands' bits and gives those of the result, for each
    element; where `lanes` is true, for the operands of a warp at once. `bound`: the result may be off by this much
    relative to the exact value that `expected` gives, or by `absolute`; its bits where `expected` gives those. `zeros`:
    bits that every result lacks. `fault`: what the executor says instead of a result. `hard`: operands that hardly come
    by chance, of whole warps where `lanes` is true."""

    text: str
    result: str
    operands: tuple[str, ...]
    expected: Callable[..., object]
    lanes: bool = False
    bound: float = 0.0
    absolute: float = 0.0
    zeros: int = 0
    fault: str = ""
    hard: Callable[[random.Random], list[tuple[int, ...]]] = lambda _: []

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
    """Hard ones, corners of all operands together as far as these are not too many, and random ones; of whole warps."""
    sets = [corners(kind) for kind in case.operands]
    crossed = list(product(*sets))
    if len(crossed) > COUNT:
        crossed = random_.sample(crossed, COUNT)
    rows = case.hard(random_) + crossed + [tuple(drawn(kind, random_) for kind in case.operands) for _ in range(COUNT)]
    return rows[: len(rows) // WARP * WARP] if case.lanes else rows


def signed(x: int, bits: int) -> int:
    return x - 2**bits if x >> (bits - 1) & 1 else x


def integer(kind: str, x: int) -> int:
    return signed(x, WIDTHS[kind]) if kind[0] == "s" else x


def mask(x: int, bits: int) -> int:
    return x & (2**bits - 1)
