"""Types of PTX and their C++ names (csrc/simt/ptx/types.h)."""

from __future__ import annotations

TYPES = {
    **{f"{letter}{bits}": f"{'s' if letter == 's' else 'u'}{bits}" for letter in "usb" for bits in (8, 16, 32, 64)},
    **{name: name for name in ("f16", "bf16", "f32", "f64", "f16x2", "bf16x2", "tf32")},
    "pred": "bool",
}
FLOATS = ("f32", "f64")
BYTES = {"bool": 1, "f16": 2, "bf16": 2, "f32": 4, "f64": 8, "f16x2": 4, "bf16x2": 4, "tf32": 4} | {
    f"{letter}{bits}": bits // 8 for letter in "us" for bits in (8, 16, 32, 64)
}


class Unsupported(Exception):
    """What the translator does not know, in the words of the PTX."""


def cpp_type(name: str) -> str:
    """The C++ type of a type's name in PTX, without its dot."""
    if name not in TYPES:
        raise Unsupported(f"type .{name}")
    return TYPES[name]
