"""Arithmetic, logic, comparisons, conversions and moves: csrc/simt/ptx/{integer,floating,special,convert}.h."""

from __future__ import annotations

from ..parse import Statement
from ..types import BYTES, Unsupported, cpp_type
from ..writer import Modifiers, Writer, flag, is_float
from .table import handles

ROUNDINGS = ("rn", "rz", "rm", "rp")
DOUBLED = {"s16": "s32", "u16": "u32", "s32": "s64", "u32": "u64"}
PIECES = {1: "u8", 2: "u16", 4: "u32"}


@handles("add", "sub", "fma")
def binary(w: Writer, s: Statement, m: Modifiers, name: str = "") -> str:
    """name<rounding, ftz, sat>, or name_int."""
    name = name or s.opcode.split(".")[0]
    kind = cpp_type(m.last())
    if not is_float(kind):
        m.end()
        return w.set(s.operands[0], f"{name}_int<{kind}>({w.values(s.operands[1:], kind)})")
    open_ = not m.names  # ptxas may fuse a mul and an add that have no rounding mode
    options = f"{m.take(*ROUNDINGS, default='rn')}, {flag(m.take('ftz'))}, {flag(m.take('sat'))}"
    m.end()
    operands = [w.value(operand, kind) for operand in s.operands[1:]]
    code = f"{name}<{options}>({', '.join(operands)})"
    if open_ and name in ("add", "sub") and not s.guard:
        code = fused(w, name, operands, s.line) + code
    line = w.set(s.operands[0], code)
    if open_ and name == "mul" and not s.guard:
        w.products[w.register(s.operands[0])[0]] = (operands[0], operands[1])
    return line


def fused(w: Writer, name: str, operands: list[str], line: int) -> str:
    """The other form of an add of a product, and the condition for it; nothing where no operand is one."""
    a, b = operands
    if a in w.products:
        x, y = w.products[a]
        return f"contracted({line}) ? fma<rn, false, false>({x}, {y}, {'-' if name == 'sub' else ''}{b}) : "
    if b in w.products:
        x, y = w.products[b]
        return f"contracted({line}) ? fma<rn, false, false>({'-' if name == 'sub' else ''}{x}, {y}, {a}) : "
    return ""


@handles("mul", "mad")
def multiply(w: Writer, s: Statement, m: Modifiers) -> str:
    """Of integers .lo, .hi or .wide; mad adds the third operand."""
    if m.names[-1] in ("f32", "f64"):
        return binary(w, s, m, "mul" if s.opcode.startswith("mul") else "fma")
    kind = cpp_type(m.last())
    half = m.take("lo", "hi", "wide")
    m.end()
    code = f"mul_{half}<{kind}>({w.values(s.operands[1:3], kind)})"
    if s.opcode.startswith("mad"):
        wide = DOUBLED[kind] if half == "wide" else kind
        code = f"add_int<{wide}>({code}, {w.value(s.operands[3], wide)})"
    return w.set(s.operands[0], code)


def plain(w: Writer, s: Statement, m: Modifiers, name: str, kinds: tuple[str, ...] = ()) -> str:
    """name_modifiers<type>(operands). `kinds`: the types of the operands; "" and what is missing: the instruction's."""
    kind = cpp_type(m.last())
    name += "".join(f"_{n}" for n in m.names if not m.HINTS.match(n))
    own = [*kinds, *[""] * len(s.operands)]
    arguments = ", ".join(w.value(o, k or kind) for o, k in zip(s.operands[1:], own, strict=False))
    return w.set(s.operands[0], f"{name}<{kind}>({arguments})")


PLAIN = {
    "rem": ("rem", ()),
    "abs": ("abs_value", ()),
    "neg": ("negate", ()),
    "copysign": ("copy_sign", ()),
    "shl": ("shl", ("", "u32")),
    "shr": ("shr", ("", "u32")),
    "shf": ("shf", ("", "", "u32")),
    "bfi": ("bfi", ("", "", "u32", "u32")),
    "bfe": ("bfe", ("", "u32", "u32")),
    "bfind": ("bfind", ()),
    "brev": ("brev", ()),
    "clz": ("clz", ()),
    "popc": ("popc", ()),
    "prmt": ("prmt", ()),
}


@handles(*PLAIN)
def by_name(w: Writer, s: Statement, m: Modifiers) -> str:
    return plain(w, s, m, *PLAIN[s.opcode.split(".")[0]])


@handles("rcp", "sqrt", "rsqrt", "ex2", "lg2", "tanh")
def special(w: Writer, s: Statement, m: Modifiers, name: str = "") -> str:
    """name_rn or name_approx<type, ftz>."""
    name = name or s.opcode.split(".")[0]
    kind = cpp_type(m.last())
    if not is_float(kind):
        raise Unsupported(f"type {kind}")
    name += "_approx" if m.take("approx") else "_rn"
    ftz, rounding = m.take("ftz"), m.take(*ROUNDINGS)
    m.end()
    if rounding not in ("", "rn") or (name.endswith("_rn") and not rounding):
        raise Unsupported("rounding")
    return w.set(s.operands[0], f"{name}<{kind}, {flag(ftz)}>({w.values(s.operands[1:], kind)})")


@handles("div")
def divide(w: Writer, s: Statement, m: Modifiers) -> str:
    return special(w, s, m, "div") if m.names[-1] in ("f32", "f64") else plain(w, s, m, "div")


@handles("min", "max")
def extreme(w: Writer, s: Statement, m: Modifiers) -> str:
    name, kind = s.opcode[:3], cpp_type(m.last())
    nan, ftz = m.take("NaN"), m.take("ftz")
    m.end()
    options = f"float<{flag(nan)}, {flag(ftz)}>" if is_float(kind) else f"int<{kind}>"
    return w.set(s.operands[0], f"{name}_{options}({w.values(s.operands[1:], kind)})")


@handles("and", "or", "xor", "not")
def logic(w: Writer, s: Statement, m: Modifiers) -> str:
    kind = cpp_type(m.last())
    m.end()
    operator = {"and": "&", "or": "|", "xor": "^", "not": "~"}[s.opcode.split(".")[0]]
    operands = [w.value(operand, kind) for operand in s.operands[1:]]
    if operator == "~":
        return w.set(s.operands[0], f"!{operands[0]}" if kind == "bool" else f"{kind}(~{operands[0]})")
    return w.set(s.operands[0], f"{kind}({operands[0]} {operator} {operands[1]})")


@handles("lop3")
def table_lookup(w: Writer, s: Statement, m: Modifiers) -> str:
    if cpp_type(m.last()) != "u32":
        raise Unsupported("lop3 form")
    m.end()
    return w.set(s.operands[0], f"lop3<{int(s.operands[4], 0)}>({w.values(s.operands[1:4], 'u32')})")


@handles("setp")
def compare(w: Writer, s: Statement, m: Modifiers) -> str:
    """setp.CmpOp.BoolOp p|q, a, b, c: p is (a CmpOp b) BoolOp c, q the same of the opposite comparison."""
    kind = cpp_type(m.last())
    ftz = ", true" if m.take("ftz") else ""
    combine = m.take("and", "or", "xor")
    (name,) = m.names
    code = f"compare_{name}<{kind}{ftz}>({w.values(s.operands[1:3], kind)})"
    targets = s.operands[0].split("|")
    lines = [code, f"!{code}"]
    if combine:
        operator = {"and": "&", "or": "|", "xor": "^"}[combine]
        lines = [f"bool({line} {operator} {w.value(s.operands[3], 'bool')})" for line in lines]
    if len(targets) == 1:
        return w.set(targets[0], lines[0])
    return f"{{ const bool p = {lines[0]}, q = {lines[1]}; {w.set(targets[0], 'p')} {w.set(targets[1], 'q')} }}"


@handles("selp")
def select(w: Writer, s: Statement, m: Modifiers) -> str:
    kind = cpp_type(m.last())
    m.end()
    a, b = (w.value(operand, kind) for operand in s.operands[1:3])
    return w.set(s.operands[0], f"{w.value(s.operands[3], 'bool')} ? {a} : {b}")


@handles("cvt")
def convert(w: Writer, s: Statement, m: Modifiers) -> str:
    source, target = cpp_type(m.last()), cpp_type(m.last())
    rounding = m.take("rni", "rzi", "rmi", "rpi", "rna", *ROUNDINGS, default="none")
    options = f"Round::{rounding}, {flag(m.take('ftz'))}, {flag(m.take('sat'))}"
    m.end()
    return w.set(s.operands[0], f"cvt<{target}, {source}, {options}>({w.values(s.operands[1:], source)})")


@handles("mov")
def move(w: Writer, s: Statement, m: Modifiers) -> str:
    """A value; or pieces of one, either way: mov.b64 {%r1, %r2}, %rd1."""
    kind = cpp_type(m.last())
    m.end()
    to, source = s.operands
    if to.startswith("{"):
        targets = w.parts(to)
        vector = f"Vec<{PIECES[BYTES[kind] // len(targets)]}, {len(targets)}>"
        return f"{{ const auto v = as<{vector}>({w.value(source, kind)}); {w.set_all(targets, 'v.x[#]')} }}"
    if source.startswith("{"):
        sources = w.parts(source)
        piece = PIECES[BYTES[kind] // len(sources)]
        return w.set(to, f"as<{kind}>(Vec<{piece}, {len(sources)}>{{{w.values(sources, piece)}}})")
    return w.set(to, w.value(source, kind))
