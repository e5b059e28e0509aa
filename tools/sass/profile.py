"""How often each basic block of the machine code is executed, from what the executor counted for the PTX behind it.

ptxas moves, folds and drops instructions, but it keeps the source line that each came from, with the lines into which
it was inlined. So a line's count in the PTX is its count in the machine code, and a basic block's is the median over
its instructions: some of them may have come from elsewhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median

from tools.ptx.cpp import basic_blocks
from tools.ptx.parse import MOST_FRAMES, Function, Module

from .flow import Block, post_order
from .listing import Kernel, Site


def counts_of_lines(module: Module, function: Function, counts: Sequence[int]) -> dict[Site, float]:
    """Of each source line with its frames: the mean over its instructions. counts: of the function's basic blocks."""
    frames = frames_of(module)
    total: dict[Site, list[int]] = defaultdict(lambda: [0, 0])
    for block, count in zip(basic_blocks(function), counts, strict=True):
        for statement in block:
            site = frames[statement.site]
            for key in {site, site[:1]}:
                total[key][0] += count
                total[key][1] += 1
    return {site: executed / instructions for site, (executed, instructions) in total.items()}


def frames_of(module: Module) -> dict[int, Site]:
    """The frames of each site by its number."""
    return {number: _frames(*key) for key, number in module.sites.numbers.items()}


def _frames(text: str, line: int) -> Site:
    """("mma.h:40 < tile.h", 96) is line 40 of mma.h, inlined at line 96 of tile.h."""
    frames = [frame.rpartition(":") for frame in f"{text}:{line}".split(" < ")]
    return tuple((file, int(number)) for file, _, number in frames)


def weights(kernel: Kernel, blocks: list[Block], lines: dict[Site, float]) -> list[float]:
    """Executions of each basic block by all warps. Zero for what is only called: slow paths."""
    result: list[float] = []
    reached = set(post_order(blocks, 0, set(range(len(blocks)))))
    for n, block in enumerate(blocks):
        known = []
        for instruction in kernel.instructions[block.first : block.last]:
            site = instruction.site[:MOST_FRAMES]
            count = lines.get(site, lines.get(site[:1]))
            if count is not None:
                known.append(count)
        result.append(median(known) if known and n in reached else 0)
    return result
