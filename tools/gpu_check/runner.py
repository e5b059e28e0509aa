"""Runs parts one after the other, each under its own time limit, and writes the summary after each of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .commands import Failed, Folder, Shell, Skipped
from .machine import Machine

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
TAIL_LINES = 15  # of a failed part's log, in the summary


@dataclass(frozen=True)
class Part:
    name: str
    seconds: float  # time limit
    run: Callable[[Shell, Machine], dict[str, Any]]  # its figures; raises Failed or Skipped
    modules: tuple[str, ...] = ()  # that it imports, beside torch
    needs: str | None = None  # the part without which it would try something old

    @property
    def log(self) -> str:
        return f"{self.name}.log"


@dataclass(frozen=True)
class Outcome:
    part: str
    status: str
    reason: str
    seconds: float
    commands: list[str]
    figures: dict[str, Any]
    tail: list[str] = field(default_factory=list)  # last lines of the log of a failed part


Report = Callable[[Sequence[Outcome]], None]


def run_parts(
    parts: Sequence[Part], machine: Machine, root: Path, folder: Folder, environment: Mapping[str, str], report: Report
) -> list[Outcome]:
    """One that fails does not keep the others from running. report: called with all outcomes so far."""
    outcomes: list[Outcome] = []
    for part in parts:
        failed = [outcome.part for outcome in outcomes if outcome.status == FAILED]
        if part.needs in failed:
            outcomes.append(Outcome(part.name, SKIPPED, f"{part.needs} failed", 0.0, [], {}))
        else:
            outcomes.append(_run(part, machine, Shell(root, folder, part.log, part.seconds, environment)))
        report(outcomes)
    return outcomes


def _run(part: Part, machine: Machine, shell: Shell) -> Outcome:
    start, figures = time.monotonic(), dict[str, Any]()
    try:
        figures = part.run(shell, machine)
        status, reason = PASSED, ""
    except Skipped as why:
        status, reason = SKIPPED, str(why)
    except Failed as why:
        status, reason, figures = FAILED, str(why), why.figures
    except Exception as error:  # output of an unexpected form: this part's failure, not that of the others
        status, reason = FAILED, f"{type(error).__name__}: {error}"
    tail = _tail(shell.folder.path / part.log) if status == FAILED else []
    return Outcome(part.name, status, reason, round(time.monotonic() - start, 1), shell.commands, figures, tail)


def _tail(log: Path) -> list[str]:
    return log.read_text().rstrip().splitlines()[-TAIL_LINES:] if log.exists() else []
