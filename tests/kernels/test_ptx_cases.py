"""Every instruction of PTX that the translator knows, on thousands of operands, against exact arithmetic."""

from __future__ import annotations

import ctypes
import math
import random
import re
from collections.abc import Iterator

import mpmath
import pytest

from tests.support.paths import ROOT
from tests.support.ptx.case import WARP, WIDTHS, Case, inputs
from tests.support.ptx.cases import CASES
from tests.support.ptx.formats import FORMATS
from tests.support.ptx.kernels import name_of

LIBRARY = ROOT / "build" / "simt" / "libptx_cases.so"
pytestmark = [pytest.mark.simt, pytest.mark.skipif(not LIBRARY.exists(), reason="make simt builds it")]
PTX = ROOT / "build" / "simt" / "ptx" / "ptx_kernel_files"
BLOCK = 128  # threads of a block: kThreads in tests/simt/ptx_cases.cpp


class Array(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("bytes", ctypes.c_uint64))


def packed(values: list[int], kind: str) -> ctypes.Array[ctypes.c_char]:
    size = WIDTHS[kind] // 8
    return ctypes.create_string_buffer(b"".join(x.to_bytes(size, "little") for x in values), len(values) * size)


def array(buffer: ctypes.Array[ctypes.c_char]) -> Array:
    return Array(ctypes.cast(buffer, ctypes.c_void_p), len(buffer))


def computed(number: int, rows: list[tuple[int, ...]], adversary: bool = False) -> list[int]:
    """The result of a case for each row of operands."""
    case = CASES[number]
    padded = rows + [rows[-1]] * (-len(rows) % BLOCK)
    columns = [packed([row[i] for row in padded], kind) for i, kind in enumerate(case.operands)]
    arrays = (Array * 4)(*map(array, columns))
    size = WIDTHS[case.result] // 8
    result = ctypes.create_string_buffer(b"\xff" * (len(padded) * size), len(padded) * size)
    message = ctypes.create_string_buffer(1000)
    library = ctypes.CDLL(str(LIBRARY))
    name = name_of(number).encode()
    to = ctypes.byref(array(result))
    if library.run_case(name, len(padded), adversary, arrays, to, message, ctypes.c_size_t(1000)):
        raise RuntimeError(message.value.decode())
    return [int.from_bytes(result[i * size : (i + 1) * size], "little") for i in range(len(rows))]


def agrees(case: Case, actual: int, expected: object) -> bool:
    if case.result not in FORMATS:
        return actual == expected
    form = FORMATS[case.result]
    value = form.decode(actual)
    if not case.bound:
        same_nan = value != value and form.decode(int(expected)) != form.decode(int(expected))
        # the ISA gives f32 one NaN; for f64 and for moves of the sign it leaves the payload open
        return actual == expected or (
            same_nan and not re.match(r"(add|sub|mul|fma|div|rcp|sqrt|min|max).*f32", case.opcode)
        )
    if actual & case.zeros or (value != value and case.result == "f32" and actual != form.nan):
        return False
    return actual == expected if isinstance(expected, int) else close(case, value, expected)


def is_negative(x: object) -> bool:
    return math.copysign(1, x) < 0 if isinstance(x, float) else x < 0


def close(case: Case, value: object, exact: object) -> bool:
    """Within the case's bound. Beyond the largest it may be infinite; subnormal it is zero with .ftz, and only so."""
    form = FORMATS[case.result]
    if value == 0 and not mpmath.isnan(exact) and is_negative(value) != is_negative(exact):
        return False
    value, exact = (
        mpmath.mpf(x.numerator) / x.denominator if hasattr(x, "numerator") else mpmath.mpf(x) for x in (value, exact)
    )
    if mpmath.isnan(exact) or mpmath.isnan(value):
        return mpmath.isnan(exact) and mpmath.isnan(value)
    least = mpmath.mpf(2) ** form.least_exponent
    most = mpmath.mpf(2) ** (1 - form.least_exponent)
    if mpmath.isinf(exact) or (mpmath.isinf(value) and abs(exact) > most * (2 - 2 * case.bound)):
        return mpmath.isinf(value) and mpmath.sign(value) == mpmath.sign(exact)
    own = 2.0 ** -(form.fraction_bits + 1) * max(abs(exact), least)  # the executor rounds before it adds an error
    off = max(case.bound * (abs(exact) + own), case.absolute) + own
    if ".ftz" in case.opcode and abs(value) < least:
        return value == 0 and abs(exact) < least + off
    return abs(value - exact) <= off


def warps(rows: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    return (rows[i : i + WARP] for i in range(0, len(rows), WARP))


def ids(numbers: list[int]) -> list[str]:
    return [f"{CASES[number].opcode}-{number}" for number in numbers]


EVERY = list(range(len(CASES)))
APPROXIMATE = [number for number in EVERY if CASES[number].bound]


def check(number: int, seed: int, adversary: bool = False) -> None:
    case = CASES[number]
    rows = inputs(case, random.Random(seed))
    if case.fault:
        with pytest.raises(RuntimeError, match=case.fault):
            computed(number, rows)
        return
    if case.lanes:
        expected = [result for warp in warps(rows) for result in case.expected(warp)]
    else:
        expected = [case.expected(*row) for row in rows]
    wrong = [
        f"{case.text} of {', '.join(map(hex, row))}: {got:#x}, not {want if case.bound else hex(want)}"
        for row, got, want in zip(rows, computed(number, rows, adversary), expected, strict=True)
        if not agrees(case, got, want)
    ]
    assert not wrong, f"{len(wrong)} of {len(rows)}:\n" + "\n".join(wrong[:10])


@pytest.mark.parametrize("number", EVERY, ids=ids(EVERY))
def test_case(number: int, fresh_seed: int) -> None:
    check(number, fresh_seed)


@pytest.mark.parametrize("number", APPROXIMATE, ids=ids(APPROXIMATE))
def test_the_adversary_keeps_to_the_bounds(number: int, fresh_seed: int) -> None:
    check(number, fresh_seed, adversary=True)
    rows = inputs(CASES[number], random.Random(fresh_seed))
    exact, changed = computed(number, rows), computed(number, rows, adversary=True)
    assert exact != changed and changed == computed(number, rows, adversary=True)


# What other tests show on the executor: the order of accesses to memory (what one thread finds there has cases),
# everything asynchronous or collective (the self-test), matrices.
ELSEWHERE = {
    "ld", "st", "atom", "red", "cvta", "bra", "call", "ret", "exit", "trap", "prefetch", "nanosleep", "bar", "barrier",
    "mapa", "mma", "wgmma", "ldmatrix", "stmatrix", "movmatrix", "cp", "mbarrier", "fence", "membar",
    "elect", "setmaxnreg",
}  # fmt: skip


@pytest.mark.skipif(not list(PTX.glob("*.ptx")), reason="make ptx builds it")
def test_every_instruction_of_the_kernels_has_a_case() -> None:
    known = {plain(case.opcode) for case in CASES}
    used: set[str] = set()
    for file in PTX.glob("*.ptx"):
        for line in file.read_text().splitlines():
            if found := re.match(r"\s+(?:\{.*;\s*)?(?:@!?%p\d+ )?([a-z]\w*\.[\w.:]+)\s", line):
                used.add(plain(found[1]))
    missing = {opcode for opcode in used - known if opcode.split(".")[0] not in ELSEWHERE}
    assert len(used) > 100 and not missing


def plain(opcode: str) -> str:
    """Without what says nothing of the result."""
    return opcode.removesuffix(".uni")
