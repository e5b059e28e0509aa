"""A model of one multiprocessor that runs a loop: an estimate from the machine code, not a measurement.

The warps of a scheduler issue in order, one instruction a cycle in all, as the control words allow: after the stall of
the one before, once the barriers that it waits for are clear, and when its pipe is free. A block barrier lets nobody
pass before all warps are there that come to it. What a loop receives from other blocks arrives a message's time after
the last of its own warps has sent in the turn before, as if all blocks ran alike.

Left out: caches (a global load takes as long as from L2), register banks, instruction fetch, and other blocks.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from .listing import Instruction
from .products import groups_left

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
PRODUCT_TAIL = 64  # from the last cycle of a wgmma in the tensor cores until its sums can be read

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
    if instruction.name == "HGMMA":  # 64 x N x 16 by four tensor cores, 1024 multiplications a cycle
        return "tensor", int(instruction.opcode.split("x")[1]) // 2
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


def message_of(instructions: list[Instruction]) -> Message | None:
    """How the blocks of a loop with these exchange what they need in the next turn; None where they do not."""
    opcodes = [instruction.opcode for instruction in instructions]
    for message in MESSAGES:
        if any(o.startswith(message.sends) for o in opcodes) and any(o.startswith(message.receives) for o in opcodes):
            return message
    return None


def is_meeting(instruction: Instruction) -> bool:
    return instruction.opcode.startswith("BAR.SYNC")


Meeting = tuple[int, str, int]  # of a block, at a barrier by its operands, for the n-th time
Path = list[Instruction]
Course = list[Path]  # turns of a loop, one after the other, and again from the first one on


class _Warp:
    def __init__(self, course: Course, first: int, block: int) -> None:
        self.course, self.first, self.block = course, first, block
        self.turn, self.at = 0, 0  # of the loop; instructions issued in it
        self.ready = 0
        self.barriers = [0] * 6  # when they are clear
        self.product = 0  # when the sums of its last wgmma are there
        self.groups: list[int] = []  # the same of each group of them that has ended
        self.arrivals: Counter[str] = Counter()  # at each barrier of the block
        self.meeting: Meeting | None = None  # that it has come to
        self.ends: list[int] = []  # of its turns
        self.start_turn()

    def start_turn(self) -> None:
        self.path = self.course[(self.first + self.turn) % len(self.course)]
        self.at = 0

    @property
    def next(self) -> Instruction:
        return self.path[self.at]

    def barriers_met(self) -> set[str]:
        return {i.operands for path in self.course for i in path if is_meeting(i)}


class _Scheduler:
    """blocks: of each block the courses of those of its warps that this scheduler has. They begin in different places,
    as blocks do that were not started together."""

    def __init__(self, blocks: list[list[Course]], turns: int) -> None:
        self.turns = turns
        self.warps = [
            _Warp(course, number * len(course) // len(blocks), number)
            for number, courses in enumerate(blocks)
            for course in courses
        ]
        self.meeting_at = Counter((warp.block, barrier) for warp in self.warps for barrier in warp.barriers_met())
        self.pipes: Counter[str] = Counter()
        self.released: dict[Meeting, int] = {}
        self.met: Counter[Meeting] = Counter()
        paths = [path for courses in blocks for course in courses for path in course]
        self.message = message_of([instruction for path in paths for instruction in path])
        self.sent: dict[int, int] = {}  # in a turn: the last one

    def run(self) -> float:
        """Cycles of a turn once the first ones are over."""
        now, last = 0, 0
        while any(len(warp.ends) < self.turns for warp in self.warps):
            for n in range(len(self.warps)):
                number = (last + 1 + n) % len(self.warps)
                if self.may_issue(self.warps[number], now):
                    last = number
                    self.issue(self.warps[number], now)
                    break
            now += 1
        skipped = self.turns // 4 - 1
        spans = [warp.ends[self.turns - 1] - warp.ends[skipped] for warp in self.warps]
        return sum(spans) / len(spans) / (self.turns - 1 - skipped)

    def may_issue(self, warp: _Warp, now: int) -> bool:
        if now < warp.ready or now < self.pipes[pipe_of(warp.next)[0]]:
            return False
        if warp.meeting and now < self.released.get(warp.meeting, now + 1):
            return False
        waits = warp.next.control.waits
        return all(now >= clear for barrier, clear in enumerate(warp.barriers) if waits >> barrier & 1)

    def issue(self, warp: _Warp, now: int) -> None:
        instruction, control = warp.next, warp.next.control
        pipe, cycles = pipe_of(instruction)
        self.pipes[pipe] = now + cycles
        warp.ready = now + max(control.stall, BRANCH if instruction.name in ("BRA", "BRX") else 1)
        if control.write_barrier is not None:
            done = max(now + LATENCY.get(instruction.name, OTHER_LATENCY), self.arrival(instruction, warp.turn))
            warp.barriers[control.write_barrier] = max(warp.barriers[control.write_barrier], done)
        if control.read_barrier is not None:
            clear = warp.barriers[control.read_barrier]
            warp.barriers[control.read_barrier] = max(clear, now + READ_LATENCY)
        if is_meeting(instruction):
            self.meet(warp, instruction.operands, now)
        if instruction.name == "HGMMA":
            warp.product = now + cycles + PRODUCT_TAIL
            if "gsb0" in instruction.operands:
                warp.groups.append(warp.product)
        if instruction.opcode.startswith("WARPGROUP.DEPBAR"):
            awaited = warp.groups[: len(warp.groups) - groups_left(instruction)]
            warp.ready = max([warp.ready, *awaited[-1:]])
        if self.message and instruction.opcode.startswith(self.message.sends):
            self.sent[warp.turn] = now
        warp.at += 1
        if warp.at == len(warp.path):
            warp.ends.append(now)
            warp.turn += 1
            warp.start_turn()

    def meet(self, warp: _Warp, barrier: str, now: int) -> None:
        warp.arrivals[barrier] += 1
        warp.meeting = warp.block, barrier, warp.arrivals[barrier]
        self.met[warp.meeting] += 1
        if self.met[warp.meeting] == self.meeting_at[warp.block, barrier]:
            self.released[warp.meeting] = now + BARRIER

    def arrival(self, instruction: Instruction, turn: int) -> int:
        """When what this one waits for is there, as far as it has been sent."""
        if not self.message or not instruction.opcode.startswith(self.message.receives) or turn - 1 not in self.sent:
            return 0
        return self.sent[turn - 1] + self.message.cycles


def cycles_of_turn(path: Path, warps: int, blocks: int = 1, turns: int = 8) -> float:
    """Of a loop whose turns are alike, with so many warps on each scheduler, of so many blocks."""
    return cycles_of_courses([[[path]] * (warps // blocks) for _ in range(blocks)], turns)


def cycles_of_courses(blocks: list[list[Course]], turns: int = 8) -> float:
    """Of a turn, on the average. blocks: of each block on a multiprocessor, the warps of one scheduler."""
    return _Scheduler(blocks, turns).run()
