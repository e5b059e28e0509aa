"""Loads, stores, atomics, fences and control flow: csrc/simt/ptx/memory.h."""

from __future__ import annotations

import re

from ..parse import Statement, called_name
from ..types import Unsupported, cpp_type
from ..writer import Modifiers, Writer, at, callee_name, passed_name
from .asynchronous import st_async
from .table import handles

SPACES = ("global", "shared", "shared::cta", "shared::cluster", "local", "param", "const")
# The C++ function of a space, and what it takes before the address.
FUNCTIONS = {
    "global": ("global", ""),
    "global.nc": ("constant", ""),
    "generic": ("generic", ""),
    "shared": ("shared", "S, "),
    "shared::cta": ("shared", "S, "),
    "shared::cluster": ("cluster", ""),
    "local": ("local", "local, "),
    "param": ("private", ""),
    "const": ("private", ""),
}
SCOPES = ("cta", "cluster", "gpu", "sys")


@handles("ld", "st")
def access(w: Writer, s: Statement, m: Modifiers) -> str:
    if "async" in m.names:
        return st_async(w, s, m)
    kind = cpp_type(m.last())
    count = int(m.take("v2", "v4", "v8", default="v1")[1:])
    space = m.take(*SPACES, default="generic")
    order = m.take("relaxed", "acquire", "release", "volatile", default="weak")
    scope = m.take(*SCOPES)
    if m.take("nc"):
        if (s.opcode[:2], space, order) != ("ld", "global", "weak"):
            raise Unsupported("nc on other than a weak load of global memory")
        space = "global.nc"
    m.end()
    name, first = FUNCTIONS[space]
    if order != "weak":
        if space not in ("global", "generic") or (not scope and order != "volatile") or scope == "cta":
            raise Unsupported(f"{order} {scope} access of {space} memory")
        name, first = "strong", f"strong, Order::{'volatile_access' if order == 'volatile' else order}, "
    if s.opcode.startswith("st") and name == "private" and not w.is_passed(s.operands[0]):
        raise Unsupported(f"a store to {space} memory")
    if s.opcode.startswith("ld"):
        targets = w.parts(s.operands[0])
        code = f"const auto v = ld_{name}<{kind}, {count}>({first}{w.address(s.operands[1])}, {at(s)});"
        return f"{{ {code} {w.set_all(targets, 'v.x[#]')} }}"
    stored = w.values(w.parts(s.operands[1]), kind)
    return f"st_{name}<{kind}, {count}>({first}{w.address(s.operands[0])}, {{{stored}}}, {at(s)});"


@handles("atom", "red")
def atomic(w: Writer, s: Statement, m: Modifiers) -> str:
    kind = cpp_type(m.last())
    order = m.take("relaxed", "acquire", "release", "acq_rel", default="relaxed")
    scope = m.take(*SCOPES)
    space = m.take("global", "shared", "shared::cta", default="generic")
    if scope == "cta" and not space.startswith("shared"):
        raise Unsupported(f"cta scope of {space} memory")
    operation = m.take("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")
    m.end()
    if kind == "f32":
        raise Unsupported("an f32: the ISA flushes subnormal ones in global memory, and not in shared memory")
    without_result = s.opcode.startswith("red")
    pointer, *values = s.operands if without_result else s.operands[1:]
    address = w.address(pointer)
    if space.startswith("shared"):
        address = f"u64(S.at({address}, sizeof({kind}), {at(s)}))"
    arguments = "".join(f", {w.value(value, kind)}" for value in values)
    code = f"atom_{operation}<{kind}>(strong, Order::{order}, {address}, {at(s)}{arguments})"
    return f"{code};" if without_result else w.set(s.operands[0], code)


@handles("cvta")
def change_space(w: Writer, s: Statement, m: Modifiers) -> str:
    """Generic addresses are those of global memory."""
    m.last()
    to = m.take("to")
    space = m.take("global", "shared", "shared::cta", "local", "const", "param")
    m.end()
    value = w.address(s.operands[1])
    if space.startswith("shared"):
        value = f"{'to' if to else 'from'}_shared({value}, {at(s)})"
    return w.set(s.operands[0], value)


@handles("fence", "membar")
def fence(w: Writer, s: Statement, m: Modifiers) -> str:
    form = ".".join(m.names)
    if form == "mbarrier_init.release.cluster":
        return "simt::fence_mbarrier_init();"
    if form in ("proxy.async.shared::cta", "proxy.async.global", "proxy.async"):
        return "simt::fence_proxy_async();"
    if re.fullmatch(r"(?:(?:acq_rel|sc)\.)?(cluster|gpu|gl|sys)", form):
        return "strong.fence();"
    raise Unsupported("form of a fence")


@handles("bra")
def branch(w: Writer, s: Statement, m: Modifiers) -> str:
    m.end()
    return f"goto {s.operands[0].lstrip('$')};"


@handles("ret", "exit")
def leave(w: Writer, s: Statement, m: Modifiers) -> str:
    m.end()
    if s.opcode == "exit" and not w.function.is_kernel:
        raise Unsupported("exit in a function that is called")
    return "return;"


@handles("call")
def call(w: Writer, s: Statement, m: Modifiers) -> str:
    """call (result), name, (arguments): the arguments where the function has its parameters."""
    m.end()
    callee = w.module.callees[called_name(s)]
    lists = [w.parts(f"{{{operand[1:-1]}}}") for operand in s.operands if operand.startswith("(")]
    results = lists.pop(0) if s.operands[0].startswith("(") else []
    arguments = lists.pop() if lists else []
    if len(results) != len(callee.results) or len(results) > 1 or len(arguments) != len(callee.layout):
        raise Unsupported("not what the function takes and returns")
    size = max((sum(place) for place in callee.layout), default=1)
    copies = "".join(
        f" std::memcpy(arguments + {offset}, {passed_name(name)}, {bytes_});"
        for name, (offset, bytes_) in zip(arguments, callee.layout, strict=True)
    )
    result = passed_name(results[0]) if results else "nullptr"
    return f"{{ alignas(16) u8 arguments[{size}];{copies} {callee_name(callee.name)}(arguments, {result}); }}"


@handles("trap")
def trap(w: Writer, s: Statement, m: Modifiers) -> str:
    return f'simt::fail("trap", {at(s)});'


@handles("prefetch")
def hint(w: Writer, s: Statement, m: Modifiers) -> str:
    if s.opcode not in ("prefetch.global.L2", "prefetch.global.L1", "prefetch.tensormap"):
        raise Unsupported("prefetch form")
    return ";"


@handles("nanosleep")
def sleep(w: Writer, s: Statement, m: Modifiers) -> str:
    return f"simt::check_live({at(s)});"
