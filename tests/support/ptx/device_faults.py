"""Faults that g++ cannot show: in asm strings, their operands and constraints, and in what the device pass sees alone.

Each one is planted in a copy of a wrapper (csrc/cuda/device), and the self-test in the form of PTX must notice it:
tests/tools/device_faults.py. Planted text has as many lines as what it replaces, so that reports name the same lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import ROOT

WRAPPERS = ROOT / "csrc" / "cuda" / "device"

# Blocks of lines, between empty ones:
#
# == wrapper
#
# what is wrong (nth of the places that have this text, if there are several)
# @ files tests/simt/cases_*.cu that show it: those of their cases whose name has this in it; nothing: all
# - text of the wrapper
# + what takes its place
TABLE = Path(__file__).with_suffix(".txt").read_text()


@dataclass(frozen=True)
class DeviceFault:
    file: str
    name: str
    nth: int
    places: int
    cases: tuple[str, ...]
    filter: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"

    def planted(self, text: str) -> str:
        """The wrapper's text with the fault."""
        pieces = text.split(self.old)
        if len(pieces) - 1 != self.places:
            raise ValueError(f"{self}: {len(pieces) - 1} places have the text, not {self.places}")
        if self.old.count("\n") != self.new.count("\n"):
            raise ValueError(f"{self}: it moves lines")
        return self.old.join(pieces[: self.nth]) + self.new + self.old.join(pieces[self.nth :])


def read(table: str) -> list[DeviceFault]:
    faults = []
    file = ""
    for block in table.strip().split("\n\n"):
        if block.startswith("== "):
            file = block[3:]
            continue
        head = re.match(r"(.+?)(?: \((\d+) of (\d+)\))?\n@ ([\w ]+):(.*)\n", block)
        if not head:
            raise ValueError(f"this is no fault:\n{block}")
        name, nth, places, cases, names = head.groups()
        lines = block[head.end() :].split("\n")
        old, new = ("\n".join(line[2:] for line in lines if line[0] == mark) for mark in "-+")
        faults.append(
            DeviceFault(file, name, int(nth or 1), int(places or 1), tuple(cases.split()), names.strip(), old, new)
        )
    return faults


FAULTS = read(TABLE)
