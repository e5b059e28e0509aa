"""python -m tests.support.ptx.kernels FILE: PTX with a kernel for each case, which computes one element a thread."""

from __future__ import annotations

import sys
from pathlib import Path

from .case import WIDTHS, Case
from .cases import CASES

HEAD = ".version 8.0\n.target sm_90a\n.address_size 64\n"
KERNEL = """
.visible .entry {name}(.param .u64 p_a, .param .u64 p_b, .param .u64 p_c, .param .u64 p_e, .param .u64 p_d)
{{
\t.reg .b32 %thread, %block, %threads, %index;
\t.reg .b64 %at, %base;
{declarations}
\tmov.u32 %thread, %tid.x;
\tmov.u32 %block, %ctaid.x;
\tmov.u32 %threads, %ntid.x;
\tmad.lo.s32 %index, %block, %threads, %thread;
{loads}
\t{instruction}
{store}
\tret;
}}
"""


def name_of(number: int) -> str:
    return f"case_{number}"


def register_type(kind: str) -> str:
    """Registers are as wide as their type, at least 16 bits."""
    return "pred" if kind == "pred" else f"b{max(16, WIDTHS[kind])}"


def memory_type(kind: str) -> str:
    """Of the arrays: bits of the type's width; a predicate is a word."""
    return f"{'s' if kind[0] == 's' else 'b' if WIDTHS[kind] > 8 else 'u'}{WIDTHS[kind]}"


def kernel(case: Case, number: int) -> str:
    names = dict(zip(("a", "b", "c", "e"), case.operands, strict=False))
    text, loads, declared = case.text, [], []
    for letter, kind in {**names, "d": case.result}.items():
        declared.append(f"\t.reg .{register_type(kind)} %{letter};")
        if kind == "pred":
            declared.append(f"\t.reg .b32 %{letter}_word;")
        text = text.replace(f"${letter}", f"%{letter}")
    rest = "b16" if case.result == "b16" else "pred" if "|" in case.text and case.opcode.startswith("setp") else "b32"
    declared += [f"\t.reg .{rest} %t;", "\t.reg .pred %p;"]
    text = text.replace("$t", "%t").replace("$p", "%p")
    for letter, kind in names.items():
        target = f"%{letter}_word" if kind == "pred" else f"%{letter}"
        loads += address(letter, kind) + [f"\tld.global.{memory_type(kind)} {target}, [%at];"]
        if kind == "pred":
            loads.append(f"\tsetp.ne.s32 %{letter}, {target}, 0;")
    store = address("d", case.result)
    if case.result == "pred":
        store.append("\tselp.u32 %d_word, 1, 0, %d;")
    stored = "%d_word" if case.result == "pred" else "%d"
    store.append(f"\tst.global.{memory_type(case.result)} [%at], {stored};")
    return KERNEL.format(
        name=name_of(number),
        declarations="\n".join(declared),
        loads="\n".join(loads),
        instruction=text,
        store="\n".join(store),
    )


def address(letter: str, kind: str) -> list[str]:
    """%at = the element of an array."""
    return [
        f"\tld.param.u64 %base, [p_{letter}];",
        f"\tmul.wide.s32 %at, %index, {WIDTHS[kind] // 8};",
        "\tadd.s64 %at, %base, %at;",
    ]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(HEAD + "".join(kernel(case, number) for number, case in enumerate(CASES)))
