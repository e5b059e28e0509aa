"""Operands of PTX as C++ expressions, and the text of one kernel."""

from __future__ import annotations

import re

from .parse import Function, Module, Statement, split_list
from .types import BYTES, FLOATS, Unsupported

SPECIAL_REGISTERS = {
    **{f"%tid.{x}": f"threadIdx.{x}" for x in "xyz"},
    **{f"%ntid.{x}": f"blockDim.{x}" for x in "xyz"},
    **{f"%ctaid.{x}": f"blockIdx.{x}" for x in "xyz"},
    **{f"%nctaid.{x}": f"gridDim.{x}" for x in "xyz"},
    "%laneid": "lane_id()",
    "%warpid": "warp_id()",
    "%lanemask_lt": "((1u << lane_id()) - 1)",
    "%cluster_ctarank": "simt::cluster_rank()",
    "%cluster_nctarank": "simt::cluster_size()",
    "%clusterid.x": "(blockIdx.x / simt::cluster_size())",
    "%dynamic_smem_size": "simt::shared_bytes()",
    "%envreg1": "u32(grid_workspace() >> 32)",
    "%envreg2": "u32(grid_workspace())",
}


def callee_name(name: str) -> str:
    return f"call_{name.replace('$', '_')}"


def passed_name(name: str) -> str:
    return name.lstrip("%").replace("$", "_")


class Writer:
    """Writes one function, an instruction at a time. Handlers of instructions ask it for their operands."""

    def __init__(self, module: Module, function: Function) -> None:
        self.module, self.function = module, function
        self.used: dict[str, str] = {}  # C++ name of each register: its type
        self.accumulators: list[list[str]] = []  # registers that wgmma writes later: they are elements of arrays
        self.products: dict[str, tuple[str, str]] = {}  # of mul that an add may be fused with: register, factors

    def register(self, name: str) -> tuple[str, str]:
        """C++ name and type."""
        registers = self.function.registers
        kind = registers.get(name) or registers.get(re.sub(r"\d+$", "", name))
        if not kind:
            raise Unsupported(f"register {name}")
        cpp = "_" + name.lstrip("%").replace("$", "_")  # %f16 must not hide the type f16
        self.used[cpp] = kind
        return cpp, kind

    def is_register(self, text: str) -> bool:
        return text.startswith("%") or text in self.function.registers

    def value(self, text: str, kind: str) -> str:
        """An operand as a value of this C++ type."""
        if text.startswith("!"):
            return f"!{self.value(text[1:], kind)}"
        if text in SPECIAL_REGISTERS:
            return f"as<{kind}>(u32({SPECIAL_REGISTERS[text]}))"
        if self.is_register(text):
            cpp, own = self.register(text)
            return cpp if own == kind else f"as<{kind}>({cpp})"
        if re.match(r"0[fF][0-9a-fA-F]{8}$", text):
            return f"as<{kind}>(0x{text[2:]}u)"
        if re.match(r"0[dD][0-9a-fA-F]{16}$", text):
            return f"as<{kind}>(0x{text[2:]}ull)"
        if re.match(r"-?(0[xX][0-9a-fA-F]+|\d+)U?$", text):
            return self.literal(int(text.rstrip("U"), 0), kind)
        return f"as<{kind}>({self.address(text)})"

    @staticmethod
    def literal(number: int, kind: str) -> str:
        if kind == "bool":
            return "true" if number else "false"
        width = kind if kind[0] in "us" and kind in BYTES else f"u{8 * BYTES[kind]}"
        return f"as<{kind}>({width}({number & (2**64 - 1)}ull))"

    def address(self, text: str) -> str:
        """[%rd1+-20], [symbol+4] or %rd1, as u64. An address in 32 bits wraps there."""
        base, _, offset = text.strip("[]").strip().partition("+")
        plus = f" + {int(offset)}" if offset else ""
        if base in self.function.parameters:
            return f"u64(P + {self.function.parameters[base]}){plus}"
        if base in self.function.results:
            return f"u64(R){plus}"
        if base in self.function.passed:
            return f"u64({passed_name(base)}){plus}"
        if base in self.module.shared:
            return f"u64(S.own){plus}"
        if base in self.function.local_bytes:
            return f"u64({base.lstrip('$')}){plus}"
        if base in self.module.variables:
            return f"u64(&{base.replace('$', '_')}){plus}"
        if self.is_register(base):
            cpp, kind = self.register(base)
            if kind == "u64":
                return f"u64({cpp}){plus}"
            return f"u64(u32({cpp}{f' + u32({int(offset)})' if offset else ''}))"
        if re.match(r"-?\d+$", base):
            return f"{base}ull{plus}"
        raise Unsupported(f"address {text}")

    def is_passed(self, text: str) -> bool:
        """Whether an address is in what a call gets, or in what a called function returns."""
        base = text.strip("[]").partition("+")[0].strip()
        return base in self.function.passed or base in self.function.results

    def values(self, operands: list[str], kind: str) -> str:
        """Operands as C++ arguments of one type."""
        return ", ".join(self.value(operand, kind) for operand in operands)

    def addresses(self, operands: list[str], kind: str) -> str:
        """Registers of this type, where C++ can look at them later."""
        names = [self.register(operand) for operand in operands]
        if any(own != kind for _, own in names):
            raise Unsupported(f"registers other than {kind}")
        return ", ".join(f"&{cpp}" for cpp, _ in names)

    def parts(self, text: str) -> list[str]:
        """The registers of {%r1, %r2}, or the one that is not in braces."""
        return split_list(text[1:-1]) if text.startswith("{") else [text]

    def accumulator(self, registers: list[str]) -> str:
        """The array whose elements these f32 registers are. It stays where it is, so that wgmma can write it later."""
        names = [self.register(name)[0] for name in registers]
        if names not in self.accumulators:
            if {name for other in self.accumulators for name in other} & {*names} or len({*names}) < len(names):
                raise Unsupported("accumulators that overlap")
            self.accumulators.append(names)
        return f"accumulator_{self.accumulators.index(names)}"

    def set(self, target: str, expression: str) -> str:
        """The result into its register; _ takes it nowhere."""
        if target == "_":
            return ""
        cpp = self.register(target)[0]
        self.products = {name: factors for name, factors in self.products.items() if cpp not in (name, *factors)}
        return f"set({cpp}, {expression});"

    def set_all(self, targets: list[str], expression: str) -> str:
        """Results into their registers; `expression` has # for the number."""
        return " ".join(self.set(target, expression.replace("#", str(i))) for i, target in enumerate(targets))


def at(s: Statement) -> str:
    """The source line of a statement, in C++."""
    return f"L[{s.site}]"


def flag(condition: object) -> str:
    return "true" if condition else "false"


class Modifiers:
    """What follows an opcode's first word. Each handler takes what it knows, and at the end nothing may be left."""

    # Hints that change no result: caches, eviction, prefetch sizes; convergence, which the executor checks by itself.
    HINTS = re.compile(r"(ca|cg|cs|lu|cv|wb|wt|L1::\w+|L2::\w+|weak|uni|unified)$")

    def __init__(self, s: Statement) -> None:
        self.opcode = s.opcode
        self.names = s.opcode.split(".")[1:]

    def take(self, *choices: str, default: str = "") -> str:
        """The one of the choices that is there, which is taken away."""
        found = [name for name in self.names if name in choices]
        if len(found) > 1:
            raise Unsupported(f"{' and '.join(found)} together")
        for name in found:
            self.names.remove(name)
        return found[0] if found else default

    def last(self) -> str:
        """The type: the last one, which is taken away."""
        if not self.names:
            raise Unsupported("no type")
        return self.names.pop()

    def end(self) -> None:
        rest = [name for name in self.names if not self.HINTS.match(name)]
        if rest:
            raise Unsupported("modifiers ." + ".".join(rest))


def is_float(kind: str) -> bool:
    return kind in FLOATS
