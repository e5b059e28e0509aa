"""Basic blocks of a kernel, and its loops."""

from __future__ import annotations

from dataclasses import dataclass, field

from .listing import Instruction, Kernel

ENDS = ("BRA", "BRX", "BRXU", "JMP", "EXIT", "RET")  # of a basic block. A call comes back, BSSY and BSYNC go on


@dataclass
class Block:
    """Instructions [first, last) that follow one another."""

    first: int
    last: int
    successors: list[int] = field(default_factory=list)
    predecessors: list[int] = field(default_factory=list)


@dataclass
class Loop:
    """A natural loop: the header's number, and those of all its blocks. inner: whether it lies in another one."""

    header: int
    blocks: set[int]
    inner: bool = False


def conditional(instruction: Instruction) -> bool:
    """Whether the warp, or a part of it, may go on behind a branch or an exit."""
    divergent = instruction.name == "BRA" and "P" in instruction.operands.split("`")[0]  # BRA.DIV UR4, BRA P0, ...
    return bool(instruction.guard) or divergent or ".DIV" in instruction.opcode


def blocks_of(kernel: Kernel) -> list[Block]:
    """All basic blocks in the order of the code."""
    code = kernel.instructions
    starts = {0}
    for n, instruction in enumerate(code):
        if instruction.name in ENDS:
            starts |= {n + 1, *instruction.targets}
        elif instruction.name == "BSSY":
            starts |= set(instruction.targets)
    order = sorted(start for start in starts if start < len(code))
    blocks = [Block(first, last) for first, last in zip(order, [*order[1:], len(code)], strict=True)]
    number = {block.first: n for n, block in enumerate(blocks)}
    for n, block in enumerate(blocks):
        end = code[block.last - 1]
        following = [number[target] for target in end.targets] if end.name in ENDS else []
        if n + 1 < len(blocks) and (end.name not in ENDS or conditional(end)):
            following.append(n + 1)
        block.successors = list(dict.fromkeys(following))
        for successor in block.successors:
            blocks[successor].predecessors.append(n)
    return blocks


def post_order(blocks: list[Block], start: int, members: set[int]) -> list[int]:
    """The blocks that are reached from `start` inside of `members`, each after those that follow it; where they go
    round, one of them comes first."""
    order: list[int] = []
    seen = {start}
    stack = [(start, iter(blocks[start].successors))]
    while stack:
        n, successors = stack[-1]
        following = next((s for s in successors if s in members and s not in seen), None)
        if following is None:
            order.append(n)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(blocks[following].successors)))
    return order


def dominators(blocks: list[Block]) -> list[int | None]:
    """The immediate dominator of each block; None for the entry and for what is never reached (Cooper, Harvey and
    Kennedy, "A Simple, Fast Dominance Algorithm", 2001)."""
    order = post_order(blocks, 0, set(range(len(blocks))))
    rank = {n: i for i, n in enumerate(order)}
    parent: dict[int, int] = {0: 0}

    def common(a: int, b: int) -> int:
        while a != b:
            while rank[a] < rank[b]:
                a = parent[a]
            while rank[b] < rank[a]:
                b = parent[b]
        return a

    changed = True
    while changed:
        changed = False
        for n in reversed(order[:-1]):
            known = [p for p in blocks[n].predecessors if p in parent]
            best = known[0]
            for p in known[1:]:
                best = common(p, best)
            if parent.get(n) != best:
                parent[n] = best
                changed = True
    return [parent.get(n) if n else None for n in range(len(blocks))]


def loops_of(blocks: list[Block]) -> list[Loop]:
    """The natural loops, one per header, in the order of the code."""
    parent = dominators(blocks)

    def dominates(a: int, b: int | None) -> bool:
        while b is not None and b != a:
            b = parent[b]
        return b == a

    found: dict[int, set[int]] = {}
    for n, block in enumerate(blocks):
        if n and parent[n] is None:
            continue  # never reached
        for header in block.successors:
            if dominates(header, n):
                found.setdefault(header, {header}).update(_body(blocks, header, n))
    loops = [Loop(header, members) for header, members in sorted(found.items())]
    for loop in loops:
        loop.inner = any(loop is not other and loop.header in other.blocks for other in loops)
    return loops


def _body(blocks: list[Block], header: int, last: int) -> set[int]:
    """What reaches the back edge without passing the header."""
    members, open_ = {header, last}, [last] if last != header else []
    while open_:
        for p in blocks[open_.pop()].predecessors:
            if p not in members:
                members.add(p)
                open_.append(p)
    return members
