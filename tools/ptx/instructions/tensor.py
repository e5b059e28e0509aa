"""Tensor cores and the matrices that they read from shared memory."""

from __future__ import annotations

import re

from ..parse import Statement
from ..types import Unsupported
from ..writer import Modifiers, Writer, at, flag
from .table import handles

# Shape and type of the operands: the executor's name of them.
ELEMENTS = {("m16n8k16", "bf16"): "bf16", ("m16n8k16", "f16"): "f16", ("m16n8k8", "tf32"): "tf32"}


@handles("mma")
def mma(w: Writer, s: Statement, m: Modifiers) -> str:
    sync, aligned, shape, *layouts = m.names[:5]
    types = m.names[5:]
    if [sync, aligned, *layouts] != ["sync", "aligned", "row", "col"]:
        raise Unsupported("form of mma")
    d, a, b, c = (w.parts(operand) for operand in s.operands)
    if shape == "m8n8k4" and types == ["f64"] * 4:
        code = f"f64 d[2] = {{{w.values(c, 'f64')}}};"
        code += f" simt::mma_f64(d[0], d[1], {w.values(a, 'f64')}, {w.values(b, 'f64')}, {at(s)});"
    else:
        element = ELEMENTS.get((shape, types[1]))
        if not element or types != ["f32", element, element, "f32"]:
            raise Unsupported(f"mma of shape {shape} and types {' '.join(types)}")
        code = f"f32 d[4] = {{{w.values(c, 'f32')}}};"
        code += f" const u32 a[4] = {{{w.values(a, 'u32')}}}, b[2] = {{{w.values(b, 'u32')}}};"
        code += f" simt::mma(simt::Element::{element}, d, a, b, {at(s)});"
    return f"{{ {code} {w.set_all(d, 'd[#]')} }}"


@handles("wgmma")
def wgmma(w: Writer, s: Statement, m: Modifiers) -> str:
    form = ".".join(m.names)
    if form == "fence.sync.aligned":
        return f"simt::wgmma_fence({at(s)});"
    if form == "commit_group.sync.aligned":
        return f"simt::wgmma_commit({at(s)});"
    if form == "wait_group.sync.aligned":
        return f"simt::wgmma_wait({int(s.operands[0])}, {at(s)});"
    return wgmma_product(w, s, form)


def wgmma_product(w: Writer, s: Statement, form: str) -> str:
    """d, a, b, accumulate, scale of a, scale of b, and for operands by descriptor whether they are transposed."""
    found = re.fullmatch(r"mma_async\.sync\.aligned\.m64n(\d+)k16\.f32\.(bf16|f16)\.\2", form)
    if not found:
        raise Unsupported("form of wgmma")
    d, a, b, accumulate, *scales = s.operands
    in_registers = a.startswith("{")
    negate, transposed = scales[:2], scales[2:]
    registers = w.parts(d)
    if negate != ["1", "1"] or len(transposed) != (1 if in_registers else 2) or {*transposed} - {"0", "1"}:
        raise Unsupported("scales of wgmma")
    if len(registers) != int(found[1]) // 2 or (in_registers and len(w.parts(a)) != 4):
        raise Unsupported("registers of wgmma")
    code = f"const u32* const a[] = {{{w.addresses(w.parts(a), 'u32')}}}; " if in_registers else ""
    source = "a, 0" if in_registers else f"nullptr, {w.value(a, 'u64')}"
    flags = ", ".join(flag(t == "1") for t in (["0", *transposed] if in_registers else transposed))
    operands = f"{w.accumulator(registers)}, {source}, {w.value(b, 'u64')}, {flags}, {w.value(accumulate, 'bool')}"
    return f"{{ {code}simt::wgmma(simt::Element::{found[2]}, {found[1]}, {operands}, {at(s)}); }}"


@handles("ldmatrix", "stmatrix")
def matrices(w: Writer, s: Statement, m: Modifiers) -> str:
    if m.names[:3] != ["sync", "aligned", "m8n8"] or m.names[-1] != "b16" or not m.names[-2].startswith("shared"):
        raise Unsupported("form of a matrix access")
    load = s.opcode.startswith("ld")
    vector, pointer = s.operands if load else reversed(s.operands)
    registers, address = w.parts(vector), f"u32({w.address(pointer)})"
    n, transposed = len(registers), flag("trans" in m.names)
    if m.names[3] != f"x{n}":
        raise Unsupported("count of matrices")
    if load:
        code = f"u32 v[{n}]; load_matrices({n}, {transposed}, v, {address}, {at(s)});"
        return f"{{ {code} {w.set_all(registers, 'v[#]')} }}"
    code = f"const u32 v[] = {{{w.values(registers, 'u32')}}};"
    return f"{{ {code} store_matrices({n}, {transposed}, v, {address}, {at(s)}); }}"


@handles("movmatrix")
def transpose(w: Writer, s: Statement, m: Modifiers) -> str:
    if m.names != ["sync", "aligned", "m8n8", "trans", "b16"]:
        raise Unsupported("form of movmatrix")
    return w.set(s.operands[0], f"simt::movmatrix_transposed({w.value(s.operands[1], 'u32')}, {at(s)})")
