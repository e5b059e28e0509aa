"""Commands with a time limit, and the folder that keeps what they printed."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .redaction import Redactor

MAX_LOG = 400_000  # characters kept of one command's output, half from its beginning and half from its end
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
REDRAWN = re.compile(r"^[^\n]*\r(?!\n)", re.MULTILINE)  # what a progress bar drew before


class Failed(Exception):
    """A part's finding that something is wrong; figures: what it had measured by then."""

    def __init__(self, reason: str, figures: Mapping[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.figures = dict(figures or {})


class Skipped(Exception):
    """Why a part cannot be done on this machine."""


@dataclass(frozen=True)
class Done:
    command: str  # as it is shown
    status: int | None  # None: stopped at the time limit
    output: str


@dataclass(frozen=True)
class Folder:
    """The one place that files are kept in; nothing gets there without redaction."""

    path: Path
    redactor: Redactor

    def append(self, name: str, text: str) -> None:
        with (self.path / name).open("a") as file:
            file.write(self.redactor.text(text))

    def write(self, name: str, text: str) -> None:
        (self.path / name).write_text(self.redactor.text(text))

    def write_json(self, name: str, value: Any) -> None:
        (self.path / name).write_text(json.dumps(self.redactor.value(value), indent=1) + "\n")


@dataclass
class Shell:
    """Runs the commands of one part, from the root of the repository, until its time is up."""

    root: Path
    folder: Folder
    log: str  # name of the file
    seconds: float
    environment: Mapping[str, str]
    commands: list[str] = field(default_factory=list)
    start: float = field(default_factory=time.monotonic)

    def run(self, *command: str | Path, extra: Mapping[str, str] | None = None) -> str:
        """The output. Raises Failed where the command fails or runs out of time."""
        done = self.attempt(*command, extra=extra)
        if done.status != 0:
            raise Failed(f"`{done.command}` ended with status {done.status}")
        return done.output

    def attempt(self, *command: str | Path, extra: Mapping[str, str] | None = None) -> Done:
        """The command with any exit status. Raises Failed where it runs out of time."""
        return self.together([command], extra)[0]

    def together(self, commands: Sequence[Sequence[str | Path]], extra: Mapping[str, str] | None = None) -> list[Done]:
        """All at the same time; one after the other in the log. Raises Failed where one runs out of time."""
        extra = dict(extra or {})
        with ThreadPoolExecutor(len(commands)) as pool:
            every = list(pool.map(lambda command: self._execute([str(word) for word in command], extra), commands))
        for done in every:
            self.commands.append(done.command)
            ending = "stopped at the time limit" if done.status is None else f"exit status {done.status}"
            self.folder.append(self.log, f"$ {done.command}\n{done.output.rstrip()}\n[{ending}]\n\n")
        for done in every:
            if done.status is None:
                raise Failed(f"time limit of {self.seconds:g} s reached in `{done.command}`")
        return every

    def _execute(self, command: list[str], extra: dict[str, str]) -> Done:
        shown = self.folder.redactor.text(shlex.join([*(f"{key}={value}" for key, value in extra.items()), *command]))
        left = self.seconds - (time.monotonic() - self.start)
        with tempfile.TemporaryFile() as output:
            try:
                process = subprocess.Popen(
                    command,
                    cwd=self.root,
                    env={**self.environment, **extra},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                return Done(shown, 127, str(error))
            try:
                status: int | None = process.wait(max(left, 0))
            except subprocess.TimeoutExpired:
                status = None
            finally:
                _stop(process)
            output.seek(0)
            return Done(shown, status, _readable(output.read().decode(errors="replace")))


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the command and what it started, which share a process group of their own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _readable(text: str) -> str:
    """Without colours and progress bars, and of a bounded length."""
    text = REDRAWN.sub("", ESCAPES.sub("", text))
    if len(text) <= MAX_LOG:
        return text
    return f"{text[: MAX_LOG // 2]}\n[... {len(text) - MAX_LOG} characters left out ...]\n{text[-MAX_LOG // 2 :]}"
