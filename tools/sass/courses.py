"""What warps do in a loop turn by turn: some of them more than others, or one phase after another.

The executor gives the courses of warps through the basic blocks of the PTX. A turn begins where a course passes the
block that has the lines of the loop's header. What it passes until the next one weighs the machine code as counts of a
whole launch do, and so gives its way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tools.ptx.cpp import basic_blocks
from tools.ptx.parse import MOST_FRAMES, Function, Module

from .flow import Block, Loop
from .listing import Kernel
from .measure import usual_path
from .model import Course, Path
from .profile import counts_of_lines, frames_of, weights

CLOSE = 0.05  # executions of a PTX block and of the header that count as equal


@dataclass
class Courses:
    """Of a kernel on the executor. of_warps: the PTX blocks that each warp passes, warp by warp, block by block;
    executions: of each PTX block, in the whole launch."""

    module: Module
    function: Function
    executions: Sequence[int]
    of_warps: list[list[int]]

    def in_loop(self, kernel: Kernel, blocks: list[Block], loop: Loop, turns: float) -> list[Course]:
        """Of each warp; none where the loop's turns are not found in the PTX."""
        begin = self._begin_of_turn(kernel, blocks[loop.header], turns)
        if begin is None:
            return []
        ways: dict[tuple[int, ...], Path] = {}

        def way(passed: list[int]) -> Path:
            key = tuple(sorted(passed))
            if key not in ways:
                counts = Counter(passed)
                of_blocks = [counts[n] for n in range(len(self.executions))]
                weight = weights(kernel, blocks, counts_of_lines(self.module, self.function, of_blocks))
                weight[loop.header] = 1.0
                ways[key] = usual_path(kernel, blocks, weight, loop)
            return ways[key]

        return [[way(turn) for turn in split(course, begin)] for course in self.of_warps]

    def _begin_of_turn(self, kernel: Kernel, header: Block, turns: float) -> int | None:
        """The PTX block that has most of the header's lines among those that are executed as often."""
        sites = {i.site[:MOST_FRAMES] for i in kernel.instructions[header.first : header.last]}
        frames = frames_of(self.module)
        shared = [len(sites & {frames[s.site] for s in block}) for block in basic_blocks(self.function)]
        alike = [n for n, count in enumerate(self.executions) if abs(count - turns) <= CLOSE * turns and shared[n]]
        return max(alike, key=lambda n: shared[n], default=None)


def split(course: list[int], begin: int) -> Iterator[list[int]]:
    """Its whole turns, each from `begin` on. What follows the last beginning may have left the loop."""
    starts = [n for n, block in enumerate(course) if block == begin]
    for first, last in zip(starts, starts[1:], strict=False):
        yield course[first:last]
