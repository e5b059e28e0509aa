"""python -m tests.support.ptx.kernels FILE: PTX with a kernel for each case, which computes one element a thread."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from .case import WIDTHS, Case
from .cases import CASES

SHARED_OF_THREAD = 16  # bytes, as tests/simt/ptx_cases.cpp gives it
HEAD = ".version 8.0\n.target sm_90a\n.address_size 64\n.extern .shared .align 1024 .b8 room[];\n"
KERNEL = """
.visible .entry {name}(.param .u64 p_a, .param .u64 p_b, .param .u64 p_c, .param .u64 p_e, .param .u64 p_d)
{{
\t.reg .b32 %thread, %block, %threads, %index, %own;
\t.reg .b64 %base, %w;
\t.local .align 16 .b8 depot[16];
{declarations}
\tmov.u32 %thread, %tid.x;
\tmov.u32 %block, %ctaid.x;
\tmov.u32 %threads, %ntid.x;
\tmad.lo.s32 %index, %block, %threads, %thread;
\tmov.u32 %own, room;
\tmad.lo.s32 %own, %thread, {shared}, %own;
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
        declared += [f"\t.reg .{register_type(kind)} %{letter};", f"\t.reg .b64 %at_{letter};"]
        if kind == "pred":
            declared.append(f"\t.reg .b32 %{letter}_word;")
        text = text.replace(f"${letter}", f"%{letter}").replace(f"&{letter}", f"%at_{letter}")
        loads += address(letter, kind)
    rest = register_type(case.result) if case.result != "pred" or case.opcode.startswith("setp") else "b32"
    declared += [f"\t.reg .{rest} %t;", "\t.reg .pred %p;"]
    for letter, kind in names.items():
        target = f"%{letter}_word" if kind == "pred" else f"%{letter}"
        loads.append(f"\tld.global.{memory_type(kind)} {target}, [%at_{letter}];")
        if kind == "pred":
            loads.append(f"\tsetp.ne.s32 %{letter}, {target}, 0;")
    store = ["\tselp.u32 %d_word, 1, 0, %d;"] if case.result == "pred" else []
    stored = "%d_word" if case.result == "pred" else "%d"
    store.append(f"\tst.global.{memory_type(case.result)} [%at_d], {stored};")
    return KERNEL.format(
        name=name_of(number),
        declarations="\n".join(declared),
        shared=SHARED_OF_THREAD,
        loads="\n".join(loads),
        instruction=re.sub(r"\$([tpw])", r"%\1", text),
        store="\n".join(store),
    )


def address(letter: str, kind: str) -> list[str]:
    """%at_a = the element of an array."""
    return [
        f"\tld.param.u64 %base, [p_{letter}];",
        f"\tmul.wide.s32 %at_{letter}, %index, {WIDTHS[kind] // 8};",
        f"\tadd.s64 %at_{letter}, %base, %at_{letter};",
    ]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(HEAD + "".join(kernel(case, number) for number, case in enumerate(CASES)))
