"""Every instruction of PTX that the translator knows, on thousands of operands, against exact arithmetic."""

from __future__ import annotations

import ctypes
import random
import re
from collections.abc import Iterator

import mpmath
import pytest

from tests.support.paths import ROOT
from tests.support.ptx.cases import CASES, WARP, WIDTHS, Case, inputs
from tests.support.ptx.formats import FORMATS
from tests.support.ptx.kernels import name_of

LIBRARY = ROOT / "build" / "simt" / "libptx_cases.so"
pytestmark = [pytest.mark.simt, pytest.mark.skipif(not LIBRARY.exists(), reason="make simt builds it")]
BLOCK = 128  # threads of a block: kThreads in tests/simt/ptx_cases.cpp


class Array(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("bytes", ctypes.c_uint64))


def packed(values: list[int], kind: str) -> ctypes.Array[ctypes.c_char]:
    size = WIDTHS[kind] // 8
    return ctypes.create_string_buffer(b"".join(x.to_bytes(size, "little") for x in values), len(values) * size)


def array(buffer: ctypes.Array[ctypes.c_char]) -> Array:
    return Array(ctypes.cast(buffer, ctypes.c_void_p), len(buffer))


def computed(number: int, rows: list[tuple[int, ...]]) -> list[int]:
    """The result of a case for each row of operands. A block's worth of them is there at least."""
    case = CASES[number]
    padded = rows + [rows[-1]] * (-len(rows) % BLOCK)
    columns = [packed([row[i] for row in padded], kind) for i, kind in enumerate(case.operands)]
    arrays = (Array * 4)(*map(array, columns))
    size = WIDTHS[case.result] // 8
    result = ctypes.create_string_buffer(b"\xff" * (len(padded) * size), len(padded) * size)
    message = ctypes.create_string_buffer(1000)
    library = ctypes.CDLL(str(LIBRARY))
    name = name_of(number).encode()
    if library.run_case(name, len(padded), arrays, ctypes.byref(array(result)), message, ctypes.c_size_t(1000)):
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
    return close(case, value, expected)


def close(case: Case, value: object, exact: object) -> bool:
    """Within the case's bound. A result that is subnormal, or beyond the largest, may be flushed or infinite."""
    form = FORMATS[case.result]
    value, exact = (
        mpmath.mpf(x.numerator) / x.denominator if hasattr(x, "numerator") else mpmath.mpf(x) for x in (value, exact)
    )
    if mpmath.isnan(exact) or mpmath.isnan(value):
        return mpmath.isnan(exact) and mpmath.isnan(value)
    least = mpmath.mpf(2) ** form.least_exponent
    most = mpmath.mpf(2) ** (1 - form.least_exponent)
    if mpmath.isinf(exact) or (mpmath.isinf(value) and abs(exact) > most * (2 - 2 * case.bound)):
        return mpmath.isinf(value) and mpmath.sign(value) == mpmath.sign(exact)
    if abs(exact) < least:
        tiny = mpmath.mpf(2) ** (form.least_exponent - form.fraction_bits)
        return abs(value) <= least and (value == 0 or abs(value - exact) <= tiny)
    return abs(value - exact) <= case.bound * abs(exact)


def warps(rows: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    return (rows[i : i + WARP] for i in range(0, len(rows), WARP))


@pytest.mark.parametrize(
    "number", range(len(CASES)), ids=[case.text.partition(" ")[0] + f"-{i}" for i, case in enumerate(CASES)]
)
def test_case(number: int, fresh_seed: int) -> None:
    case = CASES[number]
    rows = inputs(case, random.Random(fresh_seed))
    if case.lanes:
        expected = [result for warp in warps(rows) for result in case.expected(warp)]
    else:
        expected = [case.expected(*row) for row in rows]
    wrong = [
        f"{case.text} of {', '.join(map(hex, row))}: {got:#x}, not {want if case.bound else hex(want)}"
        for row, got, want in zip(rows, computed(number, rows), expected, strict=True)
        if not agrees(case, got, want)
    ]
    assert not wrong, f"{len(wrong)} of {len(rows)}:\n" + "\n".join(wrong[:10])
