"""What lanes, threads and blocks do together: csrc/simt/ptx/collective.h."""

from __future__ import annotations

from ..parse import Statement
from ..types import Unsupported
from ..writer import Modifiers, Writer, at, flag
from .table import handles


@handles("bar", "barrier")
def barrier(w: Writer, s: Statement, m: Modifiers) -> str:
    names = [name for name in m.names if name not in ("cta", "aligned")]
    if names == ["warp", "sync"]:
        return f"simt::syncwarp({w.value(s.operands[0], 'u32')}, {at(s)});"
    if names[0] == "cluster":
        if names[1:] not in (["arrive", "release"], ["wait", "acquire"], ["arrive"], ["wait"]):
            raise Unsupported("form of barrier.cluster")
        return f"simt::cluster_{names[1]}({at(s)});"
    if names[0] == "red":
        return barrier_red(w, s, names[1:])
    wait = {("sync",): "true", ("arrive",): "false"}[tuple(names)]
    if len(s.operands) == 1:
        if wait == "false":
            raise Unsupported("an arrival needs a count of threads")
        return f"block_barrier({w.value(s.operands[0], 'u32')}, {at(s)});"
    number, threads = (w.value(operand, "s32") for operand in s.operands)
    return f"simt::named_barrier({number}, {threads}, {wait}, {at(s)});"


def barrier_red(w: Writer, s: Statement, names: list[str]) -> str:
    """With a predicate of each thread, counted or combined."""
    target, number, predicate = s.operands
    if number != "0" or names not in (["popc", "u32"], ["and", "pred"], ["or", "pred"]):
        raise Unsupported("form of bar.red")
    code = f"simt::syncthreads({w.value(predicate, 'bool')}, {at(s)})"
    return w.set(target, {"popc": f"u32({code}.count)", "and": f"{code}.all", "or": f"{code}.any"}[names[0]])


@handles("shfl")
def shuffle(w: Writer, s: Statement, m: Modifiers) -> str:
    """shfl.sync.mode.b32 d|p, a, b, c, members"""
    sync, mode, kind = m.names
    if sync != "sync" or kind != "b32" or mode not in ("up", "down", "bfly", "idx"):
        raise Unsupported("form of shfl")
    target, _, valid = s.operands[0].partition("|")
    values = ", ".join(w.value(operand, "u32") for operand in s.operands[1:])
    code = f"const Shuffled v = shfl_{mode}({values}, {at(s)});"
    return f"{{ {code} {w.set(target, 'v.value')} {w.set(valid, 'v.valid') if valid else ''} }}"


@handles("vote")
def vote(w: Writer, s: Statement, m: Modifiers) -> str:
    sync, mode, kind = m.names
    if sync != "sync" or kind != ("b32" if mode == "ballot" else "pred"):
        raise Unsupported("form of vote")
    predicate, members = w.value(s.operands[1], "bool"), w.value(s.operands[2], "u32")
    counted = f"!({predicate})" if mode == "all" else predicate
    code = f"simt::vote(simt::Vote::ballot, {members}, {counted}, {at(s)})"
    return w.set(s.operands[0], code + {"ballot": "", "any": " != 0", "all": " == 0"}[mode])


@handles("elect")
def elect(w: Writer, s: Statement, m: Modifiers) -> str:
    """elect.sync lane|p, members"""
    if m.names != ["sync"]:
        raise Unsupported("form of elect")
    lane, _, chosen = s.operands[0].partition("|")
    code = f"const simt::Elected v = simt::elect({w.value(s.operands[1], 'u32')}, {at(s)});"
    return f"{{ {code} {w.set(lane, 'v.lane')} {w.set(chosen, 'v.self')} }}"


@handles("setmaxnreg")
def registers(w: Writer, s: Statement, m: Modifiers) -> str:
    if m.names[1:] != ["sync", "aligned", "u32"] or m.names[0] not in ("inc", "dec"):
        raise Unsupported("form of setmaxnreg")
    return f"simt::set_max_registers({int(s.operands[0])}, {flag(m.names[0] == 'inc')}, {at(s)});"


@handles("redux")
def reduce(w: Writer, s: Statement, m: Modifiers) -> str:
    """The executor compares as unsigned: signed values go through it with their sign bit flipped."""
    sync, name, kind = m.names
    operation = {"and": "bit_and", "or": "bit_or", "xor": "bit_xor"}.get(name, name)
    if sync != "sync" or kind not in ("u32", "s32", "b32") or operation not in (
        "add", "min", "max", "bit_and", "bit_or", "bit_xor",
    ):  # fmt: skip
        raise Unsupported("form of redux")
    flip = " ^ 1u << 31" if kind == "s32" and operation in ("min", "max") else ""
    value, members = (w.value(operand, "u32") for operand in s.operands[1:])
    return w.set(s.operands[0], f"simt::vote(simt::Vote::{operation}, {members}, {value}{flip}, {at(s)}){flip}")


@handles("match")
def match(w: Writer, s: Statement, m: Modifiers) -> str:
    if m.names != ["any", "sync", "b32"]:
        raise Unsupported("form of match")
    value, members = (w.value(operand, "u32") for operand in s.operands[1:])
    return w.set(s.operands[0], f"simt::vote(simt::Vote::match_any, {members}, {value}, {at(s)})")


@handles("mapa")
def map_rank(w: Writer, s: Statement, m: Modifiers) -> str:
    if m.names != ["shared::cluster", "u32"]:
        raise Unsupported("form of mapa")
    address, rank = (w.value(operand, "u32") for operand in s.operands[1:])
    return w.set(s.operands[0], f"simt::map_rank({address}, {rank}, {at(s)})")
