"""The machine code of the CUDA kernels, weighed and modelled without a device: `python -m bench sass`.

The kernels of the cases of bench/counters.py run as their PTX on the host executor, which counts how often each basic
block is executed. ptxas makes machine code of the same PTX, and tools/sass reads it: instructions and encoded stalls of
every loop once around, the global loads that are in flight together, divisions, and what a model of a multiprocessor
makes of it. bench/machine_code.json holds the numbers of the committed kernels; `--check` fails where a loop's
instructions or stalls have grown by more than 2 %, `--write` replaces the file.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.ptx.cpp import basic_blocks
from tools.ptx.parse import Module
from tools.sass.assemble import assembled, entries, program, ptx_of, single_kernel
from tools.sass.courses import Courses
from tools.sass.measure import Measured, Turn, load_batches, measured
from tools.sass.model import Course, cycles_of_courses, cycles_of_turn, is_meeting
from tools.sass.names import demangled
from tools.sass.products import touched_too_early
from tools.sass.profile import counts_of_lines

from .counters import CASES, counted

ROOT = Path(__file__).resolve().parents[1]
FILE, PAGE = Path(__file__).with_name("machine_code.json"), ROOT / "docs/kernels/machine-code.md"
MARKS = "<!-- machine code -->\n", "<!-- /machine code -->"  # of what the page has from here
PTX, FOLDER = ROOT / "build/simt/ptx/ptx_kernel_files", ROOT / "build/sass"
CUDA = ROOT / "csrc/cuda"
ARCH = "sm_90a"  # of the table
DEVICES = {  # what the executor imitates to run the PTX of an architecture
    ARCH: {},
    "sm_80": {"compute_capability": 80, "max_shared_bytes": 166912, "max_cluster": 1, "multiprocessors": 108},
    "sm_100": {},
    "sm_120": {},
}
# Of these there is no PTX that the executor could run. Their machine code is weighed by what it counts for the PTX of
# ARCH: scans and steps have the same lines there, the mLSTM has other kernels.
BY_LINES = "sm_100", "sm_120"
HOT = 0.04  # loops with less of a kernel's instructions are left out
USUAL = 0.6  # of a loop's instructions lie on the way that most turns take; else there is no such way
FAR = 0.3  # courses whose turns are longer or shorter than the loop's by more than this belong to something else
TURNS = 40  # of courses that are modelled
SCHEDULERS = 4
BAND = 0.02  # a loop that is worse by more than this needs a new table

Numbers = dict[str, Any]
Table = dict[str, dict[str, Numbers]]  # case: {kernel: numbers}


@dataclass
class Seen:
    """A kernel in a case: what ran, and its machine code."""

    name: str
    launches: int
    warps: int  # of all launches
    warps_of_block: int
    blocks: int  # that a multiprocessor holds
    ptx_instructions: int  # executed, as the executor counted them
    code: Measured
    courses: Courses

    @property
    def per_scheduler(self) -> int:
        """Warps that a multiprocessor holds on each of its four schedulers."""
        return max(1, self.warps_of_block * self.blocks // SCHEDULERS)

    def courses_of(self, turn: Turn) -> list[Course]:
        courses = self.courses.in_loop(self.code.kernel, self.code.blocks, turn.loop, turn.turns)
        lengths = [len(path) for course in courses for path in course]
        known = lengths and abs(sum(lengths) / len(lengths) - turn.executed) <= FAR * turn.executed
        return courses if known else []

    def courses_in(self, turn: Turn) -> list[list[Course]]:
        """Of the warps of one scheduler in a loop, block by block; none where they are not known, or not well. Warps
        with another task are in a loop of their own meanwhile, and meet the others in it."""
        courses = self.courses_of(turn)
        if not courses:
            return []
        for other in self.code.turns:
            if not all(courses) and other is not turn and meets(turn) and meets(other):
                beside = self.courses_of(other) or courses
                courses = [a or b for a, b in zip(courses, beside, strict=True)]
        size = self.warps_of_block
        of_blocks = [courses[n : n + size : SCHEDULERS] for n in range(0, len(courses), size)]
        chosen = [of_blocks[n * len(of_blocks) // self.blocks] for n in range(self.blocks)]
        return chosen if all(course for courses in chosen for course in courses) else []


def meets(turn: Turn) -> bool:
    """Whether warps wait for one another in each turn."""
    return any(is_meeting(instruction) for instruction in turn.path)


def sources(arch: str = ARCH) -> dict[str, Path]:
    """Of each kernel the PTX file that the executor runs. Raises FileNotFoundError where there are none."""
    arch = ARCH if arch in BY_LINES else arch
    files = {name: file for file in sorted(PTX.glob(f"*.{arch}.ptx")) for name in entries(file.read_text())}
    if not files:
        raise FileNotFoundError(f"no PTX of {arch} in {PTX}: make ptx PTX_ARCHS='sm_90a sm_80'")
    return files


def seen_in(counts_of_kernels: dict[str, Any], files: dict[str, Path], arch: str = ARCH) -> Iterator[Seen]:
    """The kernels of a call, by what counters.counted gives."""
    for counts in counts_of_kernels.values():
        names = demangled(list(counts["instances"]))
        for name, (instance, ran) in zip(names, counts["instances"].items(), strict=True):
            text = single_kernel(files[instance].read_text(), instance)
            module = Module(text)
            (function,) = module.functions
            (kernel,) = assembled(compiled_for(arch, files[instance], name) or text, arch, FOLDER)
            code = measured(kernel, counts_of_lines(module, function, ran["blocks"]))
            pairs = zip(basic_blocks(function), ran["blocks"], strict=True)
            executed = sum(len(block) * count for block, count in pairs)
            courses = Courses(module, function, ran["blocks"], ran["courses"])
            launched = name.partition(": ")[2], ran["launches"], ran["warps"]
            warps_of_block, blocks = resident(text)
            if "resident_" in name:  # a scan has few blocks, each of them a multiprocessor to itself
                blocks = 1
            yield Seen(*launched, warps_of_block, blocks, executed, code, courses)


def compiled_for(arch: str, file: Path, name: str) -> str | None:
    """The PTX of a kernel for an architecture that is weighed by lines, given the PTX file of ARCH that has it. Kernels
    in unnamed namespaces have other symbols there, but the same readable names."""
    if arch not in BY_LINES:
        return None
    (source,) = CUDA.rglob(f"{file.name.split('.')[0]}.cu")
    text = ptx_of(source, CUDA.parent, arch, FOLDER)
    symbols = entries(text)
    return single_kernel(text, symbols[demangled(symbols).index(name)])


def resident(ptx: str) -> tuple[int, int]:
    """Warps of a block, and blocks on a multiprocessor, by the launch bounds."""
    threads, blocks = re.search(r"\.maxntid (\d+)", ptx), re.search(r"\.minnctapersm (\d+)", ptx)
    return int(threads[1] if threads else 128) // 32, int(blocks[1] if blocks else 1)


def hot_turns(seen: Seen) -> list[Turn]:
    """Its loops that matter, those that execute most first."""
    return [turn for turn in seen.code.turns if turn.turns * turn.executed > HOT * seen.code.executed]


def modelled(seen: Seen, turn: Turn) -> float | None:
    """Cycles of a turn of a loop. None where turns differ and it is not known how. Where there is a usual way, what
    turns execute besides takes its time in proportion."""
    if courses := seen.courses_in(turn):
        return cycles_of_courses(courses, TURNS)
    if len(turn.path) >= USUAL * turn.executed:
        return cycles_of_turn(turn.path, seen.per_scheduler, seen.blocks) * turn.executed / len(turn.path)
    return None


def loop_numbers(turn: Turn, per_scheduler: int, cycles: float | None) -> Numbers:
    """Of a loop once around. cycles: by the model."""
    busiest = max(turn.pipes, key=lambda pipe: turn.pipes[pipe])
    return {
        "instructions": round(turn.executed, 1),
        "stalls": round(turn.stalls, 1),
        "model cycles": None if cycles is None else round(cycles),
        "bound": [busiest, round(turn.pipes[busiest] * per_scheduler)],
        "classes": {kind: round(n, 1) for kind, n in sorted(turn.instructions.items()) if n >= 0.05},
        "load batches": load_batches(turn.path),
        "divisions": turn.divisions,
        "slow paths": sum(turn.slow_paths.values()),
    }


def numbers(seen: Seen) -> Numbers:
    return {
        "instructions": round(seen.code.executed),
        "PTX instructions": seen.ptx_instructions,
        "code bytes": seen.code.kernel.code_bytes,
        "local memory": seen.code.local_memory,
        "products touched": touched_too_early(seen.code.kernel),
        "warps per scheduler": seen.per_scheduler,
        "loops": [loop_numbers(turn, seen.per_scheduler, modelled(seen, turn)) for turn in hot_turns(seen)],
    }


def look(case: str, files: dict[str, Path], arch: str = ARCH) -> dict[str, Numbers]:
    """What there is to see in a case, by kernel. files: those of sources(arch)."""
    counts = counted(CASES[case], **DEVICES[arch])
    return {seen.name: numbers(seen) for seen in seen_in(counts, files, arch)}


def cases_on(arch: str, cases: list[str]) -> list[str]:
    """Those of them that it can run, or read: only sm_90 and later have clusters, and see BY_LINES."""
    if arch == ARCH:
        return cases
    return [case for case in cases if ("mlstm (" if arch in BY_LINES else "cluster") not in case]


# ---- the table ----


def release() -> str:
    """Of ptxas: another one makes other code."""
    printed = subprocess.run([program("ptxas"), "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"release ([\d.]+)", printed)
    return found[1] if found else "unknown"


def worse(old: dict[str, Numbers], new: dict[str, Numbers], case: str) -> list[str]:
    """A line for each kernel of a case that the old table does not have, and for each number that grew too much."""
    lines = []
    for name, kernel in new.items():
        if name not in old:
            lines.append(f"{case}: {name} is not in the table")
            continue
        if kernel["local memory"] > old[name]["local memory"]:
            lines.append(f"{case}: {name}: uses local memory")
        lines += [f"{case}: {name}: {line}" for line in kernel["products touched"]]
        loops, before = kernel["loops"], old[name]["loops"]
        for number, (loop, known) in enumerate(zip(loops, before, strict=False), 1):
            lines += [f"{case}: {name}, loop {number}: {line}" for line in worse_loop(known, loop)]
        if len(loops) > len(before):
            lines.append(f"{case}: {name}: {len(loops)} loops, the table has {len(before)}")
    return lines


def worse_loop(old: Numbers, new: Numbers) -> list[str]:
    lines = [
        f"{kind} {old[kind]} -> {new[kind]}"
        for kind in ("instructions", "stalls", "divisions", "slow paths")
        if new[kind] > old[kind] * (1 + BAND)
    ]
    if len(new["load batches"]) > len(old["load batches"]):
        lines.append(f"waits for global loads {old['load batches']} -> {new['load batches']}")
    return lines


def read() -> dict[str, Any]:
    """{"ptxas": release, "cases": Table}"""
    return dict(json.loads(FILE.read_text())) if FILE.exists() else {"ptxas": "", "cases": {}}


def write(cases: Table) -> None:
    """A line for each kernel."""
    blocks = []
    for case, kernels in cases.items():
        rows = ",\n".join(f"   {json.dumps(name)}: {json.dumps(kernel)}" for name, kernel in kernels.items())
        blocks.append(f"  {json.dumps(case)}: {{\n{rows}\n  }}")
    head = f'{{\n "ptxas": {json.dumps(release())},\n "cases": {{\n'
    FILE.write_text(head + ",\n".join(blocks) + "\n }\n}\n")
    PAGE.write_text(with_tables(PAGE.read_text(), read()))


def with_tables(page: str, table: dict[str, Any]) -> str:
    """The page, with the numbers of this table between its marks."""
    before, rest = page.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    tables = "\n".join(report(case, kernels) for case, kernels in table["cases"].items())
    return f"{before}{MARKS[0]}\nBy ptxas {table['ptxas']}.\n\n{tables}\n{MARKS[1]}{after}"


def report(case: str, kernels: dict[str, Numbers]) -> str:
    """A table of a case's loops, in Markdown."""
    lines = [
        f"### {case}",
        "",
        "| kernel, loop | instructions | stalls | model: cycles | bound "
        "| tensor | shared | global | loads | divisions |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    for name, kernel in kernels.items():
        for number, loop in enumerate(kernel["loops"], 1):
            kinds = [f"{loop['classes'].get(kind, 0):g}" for kind in ("tensor", "shared", "global")]
            loads = " ".join(map(str, loop["load batches"])) or "-"
            model = f"{loop['model cycles']:,}" if loop["model cycles"] else "-"
            pipe, cycles = loop["bound"]
            first = f"{loop['instructions']:g} | {loop['stalls']:g} | {model} | {pipe} {cycles:,}"
            lines.append(f"| `{name}`, {number} | {first} | {' | '.join(kinds)} | {loads} | {loop['divisions']} |")
    return "\n".join(lines) + "\n"
