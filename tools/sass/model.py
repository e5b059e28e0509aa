"""A model of one multiprocessor that runs a loop: an estimate from the machine code, not a measurement.

The warps of a scheduler issue in order, one instruction a cycle in all, as the control words allow: after the stall of
the one before, once the barriers that it waits for are clear, and when its pipe is free. A block barrier lets nobody
pass before all warps are there. What a loop receives from other blocks arrives a message's time after the last of its
own warps has sent in the turn before, as if all blocks ran alike.

Left out: caches (a global load takes as long as from L2), register banks, instruction fetch, and other blocks.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from .listing import Instruction

# Cycles until a result is there, for instructions that say so by a barrier; others are timed by their stalls. These and
# the numbers below are those of public microbenchmarks of Hopper, or of Volta (Jia et al., 2018) where these give none.
# None of them was measured here.
LATENCY = {
    "LDS": 29,
    "LDSM": 33,
    "LDG": 280,
    "LD": 280,
    "ATOM": 300,
    "ATOMG": 300,
    "LDC": 40,
    "SHFL": 24,
    "MUFU": 22,
    "F2F": 22,
    "F2I": 22,
    "FCHK": 22,
    "S2R": 25,
    "S2UR": 20,
    "R2UR": 12,
    "HMMA": 33,
    "SYNCS": 36,
}
OTHER_LATENCY = 20
READ_LATENCY = 12  # until operands have been read
BARRIER = 30  # from the last arrival on
BRANCH = 5

# The pipe of an instruction, and for how many cycles it is taken: 32 lanes on 32, 16, 8 or 4 units of a scheduler; what
# goes to shared and global memory takes its turn among four schedulers.
PIPES = {
    **dict.fromkeys(("FFMA", "FADD", "FMUL"), ("fma", 1)),
    "IMAD": ("fma", 2),
    **dict.fromkeys(("MUFU", "F2F", "F2I", "I2F", "FCHK", "FRND"), ("special", 8)),
    **dict.fromkeys(("DADD", "DMUL", "DFMA", "DSETP"), ("fp64", 2)),
    "HMMA": ("tensor", 7),
    "DMMA": ("tensor", 16),
    **dict.fromkeys(("LDS", "STS", "LDSM", "SHFL", "LDG", "STG", "LD", "ST", "LDGSTS", "STAS"), ("memory", 4)),
    **dict.fromkeys(("ATOM", "ATOMG", "RED"), ("memory", 4)),
    **dict.fromkeys(("BRA", "BRX", "BSSY", "BSYNC", "CALL", "RET", "EXIT", "NOP"), ("issue", 1)),
    **dict.fromkeys(("BAR", "WARPSYNC", "SYNCS", "LDC", "S2R"), ("issue", 1)),
}
OTHER_PIPE = ("alu", 2)


def pipe_of(instruction: Instruction) -> tuple[str, int]:
    """The pipe that it takes, and the cycles."""
    return PIPES.get(instruction.name, OTHER_PIPE)


# What sends to other blocks and what receives, with the time of a message in cycles: a store to distributed shared
# memory with its mbarrier, or a store and a polling load of L2 (both one way).
CLUSTER_MESSAGE, GRID_MESSAGE = 250, 900


@dataclass(frozen=True)
class Message:
    """sends, receives: the start of the opcodes."""

    sends: tuple[str, ...]
    receives: tuple[str, ...]
    cycles: int


MESSAGES = (
    Message(("STAS", "ST.ASYNC"), ("SYNCS.PHASECHK",), CLUSTER_MESSAGE),
    Message(("STG.E.STRONG", "STG.E.64.STRONG", "STG.E.128.STRONG", "ST.E.STRONG", "ST.E.128.STRONG"),
            ("LDG.E.STRONG", "LDG.E.64.STRONG", "LDG.E.128.STRONG", "LD.E.STRONG", "LD.E.128.STRONG"), GRID_MESSAGE),
)  # fmt: skip


def message_of(path: list[Instruction]) -> Message | None:
    """How the loop's blocks exchange what they need in the next turn; None where they do not."""
    for message in MESSAGES:
        opcodes = [instruction.opcode for instruction in path]
        if any(o.startswith(message.sends) for o in opcodes) and any(o.startswith(message.receives) for o in opcodes):
            return message
    return None


class _Warp:
    def __init__(self) -> None:
        self.at = 0  # instructions issued
        self.ready = 0
        self.barriers = [0] * 6  # when they are clear
        self.arrivals = 0  # at the block's barrier
        self.ends: list[int] = []  # of its turns


class _Scheduler:
    """Identical warps that execute a path again and again."""

    def __init__(self, path: list[Instruction], warps: int, turns: int) -> None:
        self.path, self.turns = path, turns
        self.warps = [_Warp() for _ in range(warps)]
        self.pipes: Counter[str] = Counter()
        self.released: dict[int, int] = {}  # the block's barrier, by the number of the meeting
        self.met: Counter[int] = Counter()
        self.message = message_of(path)
        sends = [n for n, i in enumerate(path) if self.message and i.opcode.startswith(self.message.sends)]
        self.last_send = sends[-1] if sends else None
        self.sent: dict[int, list[int]] = {}

    def run(self) -> float:
        """Cycles of a turn once the first ones are over."""
        now, last = 0, 0
        while any(len(warp.ends) < self.turns for warp in self.warps):
            order = [self.warps[(last + 1 + n) % len(self.warps)] for n in range(len(self.warps))]
            chosen = next((warp for warp in order if len(warp.ends) < self.turns and self.may_issue(warp, now)), None)
            if chosen:
                last = self.warps.index(chosen)
                self.issue(chosen, now)
            now += 1
        ends = self.warps[0].ends
        return (ends[-1] - ends[1]) / (len(ends) - 2)

    def may_issue(self, warp: _Warp, now: int) -> bool:
        instruction = self.path[warp.at % len(self.path)]
        if now < warp.ready or now < self.pipes[pipe_of(instruction)[0]]:
            return False
        if warp.arrivals and now < self.released.get(warp.arrivals, now + 1):
            return False
        waits = instruction.control.waits
        return all(now >= clear for barrier, clear in enumerate(warp.barriers) if waits >> barrier & 1)

    def issue(self, warp: _Warp, now: int) -> None:
        place, turn = warp.at % len(self.path), warp.at // len(self.path)
        instruction = self.path[place]
        control = instruction.control
        pipe, cycles = pipe_of(instruction)
        self.pipes[pipe] = now + cycles
        warp.ready = now + max(control.stall, BRANCH if instruction.name in ("BRA", "BRX") else 1)
        if control.write_barrier is not None:
            done = max(now + LATENCY.get(instruction.name, OTHER_LATENCY), self.arrival(instruction, turn))
            warp.barriers[control.write_barrier] = max(warp.barriers[control.write_barrier], done)
        if control.read_barrier is not None:
            clear = warp.barriers[control.read_barrier]
            warp.barriers[control.read_barrier] = max(clear, now + READ_LATENCY)
        if instruction.opcode.startswith("BAR.SYNC"):
            warp.arrivals += 1
            self.met[warp.arrivals] += 1
            if self.met[warp.arrivals] == len(self.warps):
                self.released[warp.arrivals] = now + BARRIER
        if place == self.last_send:
            self.sent.setdefault(turn, []).append(now)
        warp.at += 1
        if warp.at % len(self.path) == 0:
            warp.ends.append(now)

    def arrival(self, instruction: Instruction, turn: int) -> int:
        """When what this one waits for is there, as far as it has been sent."""
        if not self.message or not instruction.opcode.startswith(self.message.receives):
            return 0
        sent = self.sent.get(turn - 1, [])
        return max(sent, default=0) + self.message.cycles if sent else 0


def cycles_of_turn(path: list[Instruction], warps: int, turns: int = 8) -> float:
    """Of a loop's usual path, with so many warps on each scheduler."""
    return _Scheduler(path, warps, turns).run()
