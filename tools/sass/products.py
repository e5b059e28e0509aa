"""Whether machine code touches the registers of a wgmma before it has waited for it: ptxas should not let it."""

from __future__ import annotations

import re

from .flow import blocks_of
from .listing import Instruction, Kernel

PRODUCT = re.compile(r"HGMMA\.64x(\d+)x")
REGISTER = re.compile(r"\bR(\d+)\b(\.64)?")
ADDRESS = re.compile(r"\[[^]]*\]")

MOST_GROUPS = 8

Registers = frozenset[int]
InFlight = tuple[Registers, ...]  # groups of products, the oldest first; the last one is open


def touched_too_early(kernel: Kernel) -> list[str]:
    """Instructions that name registers of products in flight, on any way through the kernel."""
    blocks = blocks_of(kernel)
    found: dict[int, str] = {}
    start: tuple[int, InFlight] = (0, (frozenset(),))
    seen, ahead = {start}, [start]
    while ahead:
        number, in_flight = ahead.pop()
        for n in range(blocks[number].first, blocks[number].last):
            instruction = kernel.instructions[n]
            early = registers_of(instruction) & frozenset().union(*in_flight)
            if early and instruction.name != "HGMMA":
                found[n] = f"{instruction.opcode} {instruction.operands} touches R{min(early)} of a product in flight"
            in_flight = after(instruction, in_flight)
        for successor in blocks[number].successors:
            if (state := (successor, in_flight)) not in seen:
                seen.add(state)
                ahead.append(state)
    return [found[n] for n in sorted(found)]


def after(instruction: Instruction, in_flight: InFlight) -> InFlight:
    """What is in flight behind an instruction. A product with gsb0 ends its group, which WARPGROUP.DEPBAR waits for."""
    if instruction.name == "HGMMA":
        *ended, opened = in_flight
        group = opened | registers_of(instruction)
        if len(ended) == MOST_GROUPS:  # a loop that never waits: there is an end to what can be in flight
            ended = [ended[0] | ended[1], *ended[2:]]
        return (*ended, group, frozenset()) if "gsb0" in instruction.operands else (*ended, group)
    if instruction.opcode.startswith("WARPGROUP.DEPBAR"):
        left = groups_left(instruction)
        *ended, opened = in_flight
        return (*ended[len(ended) - left :], opened) if left else (opened,)
    return in_flight


def groups_left(depbar: Instruction) -> int:
    """How many groups of products, the last ones, WARPGROUP.DEPBAR does not wait for."""
    return int(depbar.operands.split(",")[1], 16)


def registers_of(instruction: Instruction) -> Registers:
    """Those that it names: all of a product's, and as many of a vector as the opcode says."""
    named = named_in(instruction.operands)
    if product := PRODUCT.match(instruction.opcode):  # D, then A where it is in registers, then D again
        sums = named[0][0] if named else None  # ptxas ends a group by a product of nothing
        named = [(first, int(product[1]) // 2 if first == sums else 4) for first, _ in named]
    elif width := next((width for bits, width in ((".128", 4), (".64", 2)) if bits in instruction.opcode), None):
        addresses = " ".join(ADDRESS.findall(instruction.operands))
        data = [(first, max(count, width)) for first, count in named_in(ADDRESS.sub("", instruction.operands))]
        named = data + named_in(addresses)
    return frozenset(first + n for first, count in named for n in range(count))


def named_in(operands: str) -> list[tuple[int, int]]:
    """Registers by their first one, and how many."""
    return [(int(first), 2 if pair else 1) for first, pair in REGISTER.findall(operands)]
