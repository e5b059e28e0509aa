"""Numbers of a kernel and of its loops: instructions by class, encoded stalls, loads in flight, slow paths."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from .flow import Block, Loop, blocks_of, loops_of, post_order
from .listing import Instruction, Kernel, Site
from .model import pipe_of
from .profile import weights

# Instructions by what executes them, by the first word of the opcode.
CLASSES = {
    "tensor": "HMMA DMMA IMMA HGMMA QGMMA WARPGROUP",
    "fp32": "FADD FMUL FFMA FMNMX FSEL FSETP FSET FCHK FRND FSWZADD HADD2 HMUL2 HFMA2 HMNMX2 HSETP2 HSET2",
    "conversion": "F2F F2FP I2F F2I I2FP F2IP I2I",
    "fp64": "DADD DMUL DFMA DSETP",
    "special": "MUFU",
    "global": "LDG STG LD ST ATOM ATOMG RED LDGSTS LDGDEPBAR CCTL UBLKCP UTMALDG UTMASTG",
    "shared": "LDS STS LDSM STSM ATOMS MOVM",
    "constant": "LDC LDCU ULDC",
    "local": "LDL STL",
    "shuffle": "SHFL REDUX VOTE VOTEU MATCH S2R S2UR CS2R R2UR",
    "barrier": "BAR DEPBAR SYNCS WARPSYNC MEMBAR ERRBAR UCGABAR_ARV UCGABAR_WAIT FENCE NANOSLEEP",
    "control": "BRA BRX BRXU JMP CALL RET EXIT BSSY BSYNC BREAK BMOV NOP YIELD ACQBULK PREEXIT",
}
CLASS_OF = {name: kind for kind, names in CLASSES.items() for name in names.split()}
SLOW_PATHS = re.compile(r"\$__internal_\d+_\$__cuda_(\w+)")


def class_of(instruction: Instruction) -> str:
    """ "integer" where it is none of the others."""
    return CLASS_OF.get(instruction.name, "integer")


@dataclass
class Turn:
    """A loop once around, on the average over the whole launch."""

    loop: Loop
    turns: float  # by all warps
    instructions: dict[str, float]  # by class
    stalls: float  # encoded cycles
    pipes: dict[str, float]  # cycles that a warp takes of each pipe of its scheduler; "issue": of the scheduler itself
    lines: dict[Site, float]  # instructions by source line with its frames
    path: list[Instruction]  # the usual way around
    slow_paths: dict[str, int]  # calls in the loop's code, by name
    divisions: int  # integer or exact ones: FCHK, and slow paths of integers

    @property
    def executed(self) -> float:
        return sum(self.instructions.values())


@dataclass
class Measured:
    """A kernel in one launch."""

    kernel: Kernel
    blocks: list[Block]
    weights: list[float]
    turns: list[Turn]  # of its loops, those that execute most first

    @property
    def executed(self) -> float:
        """Instructions of all warps."""
        pairs = zip(self.blocks, self.weights, strict=True)
        return sum(weight * (block.last - block.first) for block, weight in pairs)

    @property
    def local_memory(self) -> int:
        return sum(class_of(instruction) == "local" for instruction in self.kernel.instructions)


def measured(kernel: Kernel, lines: dict[Site, float]) -> Measured:
    """lines: how often each was executed, as profile.counts_of_lines gives it."""
    blocks = blocks_of(kernel)
    weight = weights(kernel, blocks, lines)
    turns = [_turn(kernel, blocks, weight, loop) for loop in loops_of(blocks) if weight[loop.header]]
    return Measured(kernel, blocks, weight, sorted(turns, key=lambda turn: -turn.turns * turn.executed))


def _turn(kernel: Kernel, blocks: list[Block], weight: list[float], loop: Loop) -> Turn:
    turns = weight[loop.header]
    kinds: Counter[str] = Counter()
    lines: Counter[Site] = Counter()
    slow: Counter[str] = Counter()
    pipes: Counter[str] = Counter()
    stalls, divisions = 0.0, 0
    for n in loop.blocks:
        share = weight[n] / turns
        for instruction in kernel.instructions[blocks[n].first : blocks[n].last]:
            kinds[class_of(instruction)] += share
            lines[instruction.site] += share
            stalls += share * instruction.control.stall
            pipe, cycles = pipe_of(instruction)
            pipes["issue"] += share
            if pipe != "issue":
                pipes[pipe] += share * cycles
            divisions += instruction.name == "FCHK"
            if called := SLOW_PATHS.search(instruction.operands):
                slow[called[1]] += 1
                divisions += "div_s" in called[1] or "div_u" in called[1]
    path = usual_path(kernel, blocks, weight, loop)
    return Turn(loop, turns, dict(kinds), stalls, dict(pipes), dict(lines), path, dict(slow), divisions)


def usual_path(kernel: Kernel, blocks: list[Block], weight: list[float], loop: Loop) -> list[Instruction]:
    """Once around, each block once: the way with most instructions in blocks that most turns execute, and with fewest
    in others."""
    turns = weight[loop.header]
    best: dict[int, tuple[float, int | None]] = {}  # of the way from a block on: its value, and the next block

    def value(n: int) -> float:
        return (blocks[n].last - blocks[n].first) * (weight[n] - turns / 2)

    for n in post_order(blocks, loop.header, loop.blocks):
        following = [s for s in blocks[n].successors if s in best]
        onward = max(following, key=lambda s: best[s][0], default=None)
        best[n] = (value(n) + (best[onward][0] if onward is not None else 0), onward)
    path: list[Instruction] = []
    n: int | None = loop.header
    while n is not None:
        path += kernel.instructions[blocks[n].first : blocks[n].last]
        n = best[n][1]
    return path


LOADS = ("LDG", "LD")


def load_batches(path: list[Instruction]) -> list[int]:
    """Global loads in flight together: how many are issued before the first instruction that waits for one of them."""
    batches: list[int] = []
    in_flight: dict[int, int] = {}  # barrier: loads
    count = 0
    for instruction in path:
        waited = [barrier for barrier in in_flight if instruction.control.waits >> barrier & 1]
        if waited and count:
            batches.append(count)
            count = 0
        for barrier in waited:
            del in_flight[barrier]
        if instruction.name in LOADS and instruction.control.write_barrier is not None:
            in_flight[instruction.control.write_barrier] = 1
            count += 1
    return [*batches, count] if count else batches
