"""The C++ file of translated kernels. What a kernel calls is in it once more, as a lambda."""

from __future__ import annotations

import re
from collections import Counter

from .classes import class_of
from .instructions import translate
from .parse import Function, Module, Statement
from .types import Unsupported
from .writer import Writer, callee_name, passed_name

PLANTED_FAULT = "xlstm_planted_fault"  # the variable of cuda/device/mutant.h
NO_KERNELS = "// No kernel of {source} falls to this file.\n"

HEAD = """// Written by tools/ptx from {source}.
#include "simt/ptx/ptx.h"

namespace ptx {{
namespace {{

const simt::Source L[] = {{
{sites}
}};
{variables}
"""

CALLEE = """  [[maybe_unused]] const auto {name} = [&]([[maybe_unused]] const u8* P, [[maybe_unused]] u8* R) {{
{lines}
  }};"""

KERNEL = """
// {nvcc_name}
namespace kernel_{number} {{
const BlockClass classes[] = {{{classes}}};
const Profile profile{{"{nvcc_name}", {blocks}, classes, std::size(classes)}};
void body([[maybe_unused]] const u8* P) {{
  Counting count(profile);
  [[maybe_unused]] const Shared S;
  [[maybe_unused]] Strong strong;
{lines}
}}
const Parameter parameters[] = {{{parameters}}};
const Kernel kernel("{name}", "{target}", body, parameters, {parameter_count});
}}  // namespace kernel_{number}
"""

TAIL = """
}  // namespace
}  // namespace ptx
"""


def host_name(name: str, local: bool) -> str:
    """A mangled name as g++ writes it. In nvcc's, anonymous namespaces carry the file's name and a hash, and a static
    function has no mark."""
    while found := re.search(r"(\d+)_GLOBAL__N__", name):
        digits = found[1]
        for length in range(1, len(digits) + 1):  # the digits may begin with the end of another name
            count = int(digits[-length:])
            if count > len("_GLOBAL__N__"):
                start = found.end(1)
                name = name[: start - length] + "12_GLOBAL__N_1" + name[start + count :]
                break
        else:
            raise Unsupported(f"name {name}")
    return name if "_GLOBAL__N_" in name or not local else static_name(name)


def static_name(name: str) -> str:
    """_ZN8selftest4kindEv -> _ZN8selftestL4kindEv"""
    at = re.match("_ZN?", name)
    last, end = -1, at.end() if at else 0
    while digits := re.compile(r"\d+").match(name, end):
        last, end = end, digits.end() + int(digits[0])
    if last < 0:
        raise Unsupported(f"name {name}")
    return f"{name[:last]}L{name[last:]}"


def variables(module: Module) -> str:
    lines = []
    for name, variable in module.variables.items():
        if PLANTED_FAULT in name:
            lines += [f"#define {name.replace('$', '_')} (*planted_fault())", "const PlantedFaults planted_faults;"]
            continue
        cpp, value = name.replace("$", "_"), variable.value.strip("{}")
        lines.append(f"alignas(16) {variable.kind} {cpp}[{variable.count}] = {{{value}}};")
    return "\n".join(lines)


def declarations(w: Writer) -> list[str]:
    """Registers and local memory of a kernel."""
    lines = []
    for number, names in enumerate(w.accumulators):
        lines.append(f"  f32 accumulator_{number}[{len(names)}]; unset(accumulator_{number});")
        lines.append("  f32 " + ", ".join(f"&{name} = accumulator_{number}[{i}]" for i, name in enumerate(names)) + ";")
    elements = {name for names in w.accumulators for name in names}
    kinds: dict[str, list[str]] = {}
    for name, kind in w.used.items():
        if name not in elements:
            kinds.setdefault(kind, []).append(name)
    lines += [f"  {kind} {', '.join(names)};" for kind, names in kinds.items()]
    for name, bytes_ in w.function.local_bytes.items():
        depot = name.lstrip("$")
        lines += [f"  alignas(16) u8 {depot}[{bytes_}];", f"  const Local local{{{depot}, {bytes_}}};"]
    lines += [f"  alignas(16) u8 {passed_name(name)}[{bytes_}];" for name, bytes_ in w.function.passed.items()]
    return lines


def basic_blocks(function: Function) -> list[list[Statement]]:
    """Statements that follow one another whenever the first of them is executed, with those of what it calls."""
    blocks: list[list[Statement]] = [block for callee in function.calls for block in basic_blocks(callee)]
    begins = True  # where nobody comes from the line above alone
    for item in function.body:
        if isinstance(item, str):
            begins = True
            continue
        if begins:
            blocks.append([])
        blocks[-1].append(item)
        begins = item.opcode.startswith("bra")
    return blocks


def written(w: Writer, function: Function, blocks: list[list[Statement]]) -> list[str]:
    """The lines of a kernel, with a counter in each basic block."""
    lines: list[str] = []
    number = {id(block[0]): n for n, block in enumerate(blocks)}
    for item in function.body:
        if isinstance(item, str):
            w.products.clear()  # whoever comes from elsewhere has other values
            lines.append(f"{item}:")
            continue
        if id(item) in number:
            lines.append(f"  count.block({number[id(item)]});")
        lines.append(f"  {translate(w, item)}")
    return lines


def code(module: Module, function: Function, blocks: list[list[Statement]]) -> list[str]:
    """The lines of a function with its registers."""
    w = Writer(module, function)
    body = written(w, function, blocks)
    return declarations(w) + body


def kernel_code(module: Module, function: Function, number: int) -> str:
    blocks = basic_blocks(function)
    callees = [
        CALLEE.format(name=callee_name(callee.name), lines="\n".join(code(module, callee, blocks)))
        for callee in function.calls
    ]
    lines = callees + code(module, function, blocks)
    classes = [Counter(class_of(statement.opcode) for statement in block) for block in blocks]
    return KERNEL.format(
        number=number,
        nvcc_name=function.name,
        name=host_name(function.name, function.local),
        target=module.target,
        lines="\n".join(lines),
        classes=", ".join(f'{{{i}, "{c}", {n}}}' for i, of_block in enumerate(classes) for c, n in of_block.items()),
        blocks=len(blocks),
        parameters=", ".join(f"{{{offset}, {bytes_}}}" for offset, bytes_ in function.layout),
        parameter_count=len(function.layout),
    )


def files(module: Module, source: str, parts: int) -> list[str]:
    """The text of as many C++ files. Kernels are dealt out by length, so that the files take alike to compile."""
    shares: list[list[int]] = [[] for _ in range(parts)]
    lengths = [len(function.body) for function in module.functions]
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        min(shares, key=lambda share: sum(lengths[n] for n in share)).append(number)
    texts = []
    for share in shares:
        kernels = [kernel_code(module, module.functions[number], number) for number in sorted(share)]
        sites = "\n".join(f'    {{"{file}", {line}}},' for file, line in module.sites.numbers)
        head = HEAD.format(source=source, sites=sites, variables=variables(module))
        texts.append(head + "".join(kernels) + TAIL if kernels else NO_KERNELS.format(source=source))
    return texts
