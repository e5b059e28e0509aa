"""Loads, stores and atomics: what a thread finds in its own memory, and which addresses are faults."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product

from .case import WARP, WIDTHS, Case, integer, mask


def memory() -> Iterable[Case]:
    yield from loads()
    yield from stores()
    yield from state_spaces()
    yield from atomics()
    yield from faults()


def loads() -> Iterable[Case]:
    """A register that is wider gets the sign of a signed type, else zeros. The first of several is the lowest."""
    for kind, register in product(("s8", "u8", "s16", "u16", "s32", "u32"), ("b32", "b64")):
        yield Case(f"ld.global.{kind} $d, [&a];", register, (kind,),
                   lambda a, k=kind, n=WIDTHS[register]: mask(integer(k, a), n))  # fmt: skip
    for kind, count in (("b32", 2), ("b16", 4)):
        for i, order in product(range(count), ("", ".relaxed.gpu")):
            targets = ", ".join("$d" if i == j else "$t" for j in range(count))
            yield Case(f"ld{order}.global.v{count}.{kind} {{{targets}}}, [&a];", kind, ("b64",),
                       lambda a, i=i, n=WIDTHS[kind]: mask(a >> n * i, n))  # fmt: skip


def stores() -> Iterable[Case]:
    for kind in ("b8", "b16"):
        yield Case(f"st.global.{kind} [&d], $a; ld.global.{kind} $d, [&d];", "b32", ("b32",),
                   lambda a, n=WIDTHS[kind]: mask(a, n))  # fmt: skip
    for order in ("", ".relaxed.gpu", ".release.gpu", ".volatile"):
        back = "ld.acquire.gpu.global.b64 $d, [&d];" if "gpu" in order else f"ld{order}.global.b64 $d, [&d];"
        yield Case(f"st{order}.global.v2.b32 [&d], {{$a, $b}}; {back}", "b64", ("b32", "b32"), lambda a, b: b << 32 | a)
    yield Case("st.global.v4.b16 [&d], {$a, $b, $c, $e}; ld.global.b64 $d, [&d];", "b64", ("b16",) * 4,
               lambda *parts: sum(x << 16 * i for i, x in enumerate(parts)))  # fmt: skip


def state_spaces() -> Iterable[Case]:
    """%own is the shared address of 16 bytes of the thread's, and depot its local memory."""
    pointer = "cvt.u64.u32 $w, %own; cvta.shared.u64 $w, $w;"
    texts = (
        "st.shared.b32 [%own+4], $a; ld.shared.b32 $d, [%own+4];",
        "st.shared::cluster.b32 [%own+12], $a; ld.shared::cta.b32 $d, [%own+12];",
        "st.shared.b32 [%own+8], $a; ld.shared::cluster.b32 $d, [%own+8];",
        f"{pointer} st.b32 [$w+4], $a; ld.shared.b32 $d, [%own+4];",
        f"{pointer} cvta.to.shared.u64 $w, $w; st.shared.b32 [$w], $a; ld.shared.b32 $d, [%own];",
        "st.local.b32 [depot], $b; st.local.b32 [depot+12], $a; ld.local.b32 $d, [depot+12];",
    )
    for text in texts:
        yield Case(text, "b32", ("b32", "b32"), lambda a, b: a)
    text = "st.shared.b32 [%own], $a; bar.warp.sync -1; xor.b32 %own, %own, 16; ld.shared.b32 $d, [%own];"
    yield Case(text, "b32", ("b32",), lambda rows: [rows[lane ^ 1][0] for lane in range(WARP)], lanes=True)


def atomics() -> Iterable[Case]:
    """The old value, and then the new one."""
    operations: list[tuple[str, tuple[str, ...], Callable[..., int]]] = [
        ("add", ("u32", "s32", "u64"), lambda old, x: old + x),
        ("min", ("u32", "s32", "u64", "s64"), min),
        ("max", ("u32", "s32", "u64", "s64"), max),
        ("inc", ("u32",), lambda old, x: 0 if old >= x else old + 1),
        ("dec", ("u32",), lambda old, x: x if old == 0 or old > x else old - 1),
        ("and", ("b32", "b64"), lambda old, x: old & x),
        ("or", ("b32", "b64"), lambda old, x: old | x),
        ("xor", ("b32", "b64"), lambda old, x: old ^ x),
        ("exch", ("b32", "b64"), lambda old, x: x),
    ]
    for name, kinds, f in operations:
        for k in kinds:
            new = lambda a, b, k=k, f=f: mask(f(integer(k, a), integer(k, b)), WIDTHS[k])  # noqa: E731
            yield Case(f"atom.global.{name}.{k} $d, [&a], $b;", k, (k, k), lambda a, b: a)
            yield Case(f"atom.acq_rel.gpu.global.{name}.{k} $t, [&a], $b; ld.global.{k} $d, [&a];", k, (k, k), new)
            if name != "exch":
                text = f"st.shared.{k} [%own+8], $a; red.shared.{name}.{k} [%own+8], $b; ld.shared.{k} $d, [%own+8];"
                yield Case(text, k, (k, k), new)
    for k in ("b32", "b64"):
        swapped = lambda a, expected, x: x if a == expected else a  # noqa: E731
        hard = lambda random_, n=WIDTHS[k]: [(x, x, random_.getrandbits(n)) for x in (0, 1, 2**n - 1)]  # noqa: E731
        yield Case(f"atom.global.cas.{k} $d, [&a], $b, $c;", k, (k, k, k), lambda a, b, c: a)
        yield Case(f"atom.global.cas.{k} $t, [&a], $b, $c; ld.global.{k} $d, [&a];", k, (k, k, k), swapped, hard=hard)


def faults() -> Iterable[Case]:
    pointer = "cvt.u64.u32 $w, %own; cvta.shared.u64 $w, $w;"
    texts = {
        "MISALIGNED access of 4 bytes": (
            "ld.global.b32 $d, [&a+2];",
            "ld.relaxed.gpu.global.b32 $d, [&a+1];",
            "st.global.b32 [&d+2], $a;",
            "atom.global.add.u32 $d, [&a+2], $a;",
            "ld.shared.b32 $d, [%own+2];",
            "st.local.b32 [depot+2], $a;",
            f"{pointer} ld.b32 $d, [$w+2];",
        ),
        "MISALIGNED access of 8 bytes": (
            "ld.global.v2.b32 {$d, $t}, [&a+4];",
            "st.shared.v2.b32 [%own+4], {$a, $a};",
            "st.local.v2.b32 [depot+4], {$a, $a};",
        ),
        "OUT OF BOUNDS access of shared memory: 4 bytes": (
            "ld.shared.b32 $d, [%own+16];",
            "st.shared.b32 [%own+-4], $a;",
            "atom.shared.add.u32 $d, [%own+16], $a;",
            "ld.shared.b32 $d, [&a];",
        ),
        "OUT OF BOUNDS access of local memory: 4 bytes": (
            "ld.local.b32 $d, [depot+16];",
            "st.local.b32 [depot+-4], $a;",
        ),
        "global memory whose address is one of shared": (
            f"{pointer} ld.global.b32 $d, [$w];",
            f"{pointer} st.global.b32 [$w], $a;",
        ),
    }
    for message, group in texts.items():
        for text in group:
            yield Case(text, "b32", ("b32",), lambda a: a, fault=message)
