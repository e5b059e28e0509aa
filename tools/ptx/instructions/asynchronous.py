"""Asynchronous copies and mbarriers: csrc/simt/ptx/asynchronous.h."""

from __future__ import annotations

import re

from ..parse import Statement, split_list
from ..types import Unsupported, cpp_type
from ..writer import Modifiers, Writer, at, flag
from .table import handles


@handles("cp")
def copy(w: Writer, s: Statement, m: Modifiers) -> str:
    form = ".".join(name for name in m.names if not name.startswith("L2::"))
    if form in ("async.ca.shared.global", "async.cg.shared.global"):
        return cp_async(w, s, form)
    if form == "async.commit_group":
        return "simt::cp_async_commit();"
    if form == "async.wait_all":
        return f"simt::cp_async_wait(-1, {at(s)});"
    if form == "async.wait_group":
        return f"simt::cp_async_wait({int(s.operands[0])}, {at(s)});"
    if form in ("async.mbarrier.arrive.shared::cta.b64", "async.mbarrier.arrive.noinc.shared::cta.b64"):
        mbarrier = f"own_mbarrier(S, u32({w.address(s.operands[0])}), {at(s)})"
        return f"simt::cp_async_mbarrier_arrive({mbarrier}, {flag('noinc' in form)}, {at(s)});"
    return bulk_copy(w, s, form)


def cp_async(w: Writer, s: Statement, form: str) -> str:
    """[to], [from], size and how much of it is read; the rest becomes zero."""
    size = int(s.operands[2])
    if size not in (4, 8, 16) or (".cg." in form and size != 16):
        raise Unsupported(f"{size} bytes")
    read = w.value(s.operands[3], "s32") if len(s.operands) > 3 else str(size)
    to, source = (w.address(operand) for operand in s.operands[:2])
    return f"copy_async(u32({to}), {source}, {size}, {read}, {at(s)});"


def tensor_copy(w: Writer, s: Statement, form: str) -> str:
    """TMA: a box of a tensor that a map describes, either way."""
    found = re.fullmatch(
        r"async\.bulk\.(prefetch\.)?tensor\.([1-5])d\.(?:"
        r"L2\.global\.tile|(shared::cluster\.global\.tile\.mbarrier::complete_tx::bytes)(\.multicast::cluster)?"
        r"|global\.shared::cta\.tile\.bulk_group)",
        form,
    )
    if not found:
        raise Unsupported("form of a tensor copy")
    prefetch, dims, load, multicast = found.groups()
    described = s.operands[1] if load else s.operands[0]
    tensor_map, coordinates = split_list(described.strip("[]"))
    box = w.parts(coordinates)
    if len(box) != int(dims) or bool(prefetch) != (".L2." in form):
        raise Unsupported("form of a tensor copy")
    code = f"const int box[] = {{{w.values(box, 's32')}}};"
    place = f"{dims}, tensor_map({w.address(tensor_map)})"
    if prefetch:
        return f"{{ {code} simt::tma_prefetch({place}, box, {at(s)}); }}"
    if not load:
        return f"{{ {code} simt::tma_store({place}, u32({w.address(s.operands[1])}), box, {at(s)}); }}"
    ranks = w.value(s.operands[3], "u16") if multicast else "0"
    memory, mbarrier_at = (f"u32({w.address(s.operands[i])})" for i in (0, 2))
    load_box = f"simt::tma_load({place}, {memory}, {mbarrier_at}, box, {ranks}, {at(s)});"
    return f"{{ {code} count_box({place}, box, {at(s)}); {load_box} }}"


def bulk_copy(w: Writer, s: Statement, form: str) -> str:
    if form.startswith(("async.bulk.tensor.", "async.bulk.prefetch.tensor.")):
        return tensor_copy(w, s, form)
    if form == "async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes":
        to, source, size, mbarrier = s.operands
        arguments = f"u32({w.address(to)}), pointer({w.address(source)}), {w.value(size, 'u32')}"
        return f"simt::bulk_load({arguments}, u32({w.address(mbarrier)}), {at(s)});"
    if form == "async.bulk.global.shared::cta.bulk_group":
        to, source, size = s.operands
        arguments = f"pointer({w.address(to)}), u32({w.address(source)}), {w.value(size, 'u32')}"
        return f"simt::bulk_store({arguments}, {at(s)});"
    if form == "async.bulk.commit_group":
        return "simt::bulk_commit();"
    if form in ("async.bulk.wait_group", "async.bulk.wait_group.read"):
        return f"simt::bulk_wait({int(s.operands[0])}, {flag(form.endswith('read'))}, {at(s)});"
    raise Unsupported("form of a copy")


def st_async(w: Writer, s: Statement, m: Modifiers) -> str:
    kind = cpp_type(m.last())
    count = int(m.take("v2", "v4", default="v1")[1:])
    if [name for name in m.names if name != "weak"] != ["async", "shared::cluster", "mbarrier::complete_tx::bytes"]:
        raise Unsupported("form of st.async")
    to, mbarrier = (f"u32({w.address(s.operands[i])})" for i in (0, 2))
    code = f"const Vec<{kind}, {count}> v{{{w.values(w.parts(s.operands[1]), kind)}}};"
    return f"{{ {code} simt::st_async({to}, &v, sizeof v, {mbarrier}, {at(s)}); }}"


@handles("mbarrier")
def mbarrier(w: Writer, s: Statement, m: Modifiers) -> str:
    if m.last() != "b64":
        raise Unsupported("form of mbarrier")
    form = ".".join(m.names)
    operands = [operand for operand in s.operands if operand != "_"]
    address = f"u32({w.address(next(o for o in operands if o.startswith('[')))})"
    own = f"own_mbarrier(S, {address}, {at(s)})"
    last = operands[-1]
    arrivals = "1" if last.startswith("[") else w.value(last, "u32")
    if form == "init.shared::cta":
        return f"simt::mbarrier_init({own}, {w.value(last, 'u32')}, {at(s)});"
    if form == "inval.shared::cta":
        return f"simt::mbarrier_invalidate({own}, {at(s)});"
    if form == "arrive.release.cta.shared::cta":
        return f"simt::mbarrier_arrive({own}, {arrivals}, 0, {at(s)});"
    if form == "arrive.release.cluster.shared::cluster":
        return f"simt::mbarrier_arrive({address}, {arrivals}, 0, {at(s)});"
    if form == "arrive.expect_tx.release.cta.shared::cta":
        return f"simt::mbarrier_arrive({own}, 1, {w.value(last, 'u32')}, {at(s)});"
    if form == "expect_tx.relaxed.cta.shared::cta":
        return f"simt::mbarrier_expect_tx({own}, {w.value(last, 'u32')}, {at(s)});"
    found = re.fullmatch(r"(test_wait|try_wait)\.parity\.acquire\.(cta|cluster)\.shared::cta", form)
    if not found:
        raise Unsupported("form of mbarrier")
    scope = {"cta": "simt::Scope::block", "cluster": "simt::Scope::cluster"}[found[2]]
    return w.set(operands[0], f"mbarrier_{found[1]}({own}, {w.value(last, 'u32')}, {scope}, {at(s)})")
