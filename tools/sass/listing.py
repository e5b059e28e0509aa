"""Instructions of a kernel as `nvdisasm -gi -hex -c` prints them, with the control word that ptxas gave each of them.

The bits of the control word are those of "Dissecting the NVIDIA Volta GPU Architecture via Microbenchmarking" (Jia et
al., 2018, section 2.1), which later architectures keep: bits 41 to 62 of the second 64-bit word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath

Site = tuple[tuple[str, int], ...]  # file and line, from the innermost frame to the kernel

NO_BARRIER = 7


@dataclass(frozen=True)
class Control:
    """stall: cycles until the warp may issue again. Barriers: cleared once the instruction has written its result, or
    read its operands. waits: those that must be clear before it issues, a bit each."""

    stall: int
    write_barrier: int | None
    read_barrier: int | None
    waits: int

    @staticmethod
    def of(word: int) -> Control:
        """From an instruction's second 64-bit word."""

        def barrier(shift: int) -> int | None:
            number = word >> shift & 7
            return None if number == NO_BARRIER else number

        return Control(word >> 41 & 15, barrier(46), barrier(49), word >> 52 & 63)


@dataclass
class Instruction:
    """`name` is the opcode's first word, "LDG" of "LDG.E.128". targets: indices of where a branch may go."""

    guard: str
    opcode: str
    operands: str
    control: Control
    site: Site
    targets: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.opcode.split(".")[0]


@dataclass
class Kernel:
    """name: mangled."""

    name: str
    instructions: list[Instruction]

    @property
    def code_bytes(self) -> int:
        return 16 * len(self.instructions)


LABEL = re.compile(r"(\.L_[\w.]+):")
FRAME = re.compile(r'\s*//## File "([^"]+)", line (\d+)(?: inlined at "([^"]+)", line (\d+))?')
INSTRUCTION = re.compile(
    r"\s*/\*[0-9a-f]{4,}\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);\s*/\* 0x([0-9a-f]{16}) \*/"
)
SECOND_WORD = re.compile(r"\s+/\* 0x([0-9a-f]{16}) \*/")
TARGET = re.compile(r"\.L_[\w.]+")


def kernels(text: str) -> Iterator[Kernel]:
    """The kernels of a listing. Raises ValueError for one without instructions or control words."""
    for section in re.split(r"^\.text\.", text, flags=re.MULTILINE)[1:]:
        name, _, body = section.partition(":\n")
        yield Kernel(name, _Body(name, body).instructions)


class _Body:
    def __init__(self, name: str, body: str) -> None:
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.jumps: list[tuple[Instruction, list[str]]] = []
        self.site: Site = ()
        self.open_site = False  # the line above was a frame of the site
        self.first: re.Match[str] | None = None
        for line in body.split("\n"):
            self.read(line)
        if not self.instructions:
            raise ValueError(f"{name}: no instructions with control words: print them by nvdisasm -gi -hex -c")
        for instruction, labels in self.jumps:
            instruction.targets = [self.labels[label] for label in labels if label in self.labels]

    def read(self, line: str) -> None:
        if found := FRAME.match(line):
            self.add_frame(found)
            return
        self.open_site = False
        if found := LABEL.match(line):
            self.labels[found[1]] = len(self.instructions)
        elif found := INSTRUCTION.match(line):
            self.first = found
        elif self.first and (found := SECOND_WORD.match(line)):
            self.add(self.first, int(found[1], 16))
            self.first = None

    def add_frame(self, found: re.Match[str]) -> None:
        """A line per frame; the next one begins where this one was inlined."""
        if not self.open_site:
            self.site = ()
        self.site += ((PurePath(found[1]).name, int(found[2])),)
        self.open_site = True

    def add(self, found: re.Match[str], second_word: int) -> None:
        guard, opcode, operands = found[1] or "", found[2], found[3].strip()
        instruction = Instruction(guard, opcode, operands, Control.of(second_word), self.site)
        if instruction.name in ("BRA", "BRX", "BRXU", "JMP", "BSSY", "CALL"):
            self.jumps.append((instruction, TARGET.findall(operands)))
        self.instructions.append(instruction)
