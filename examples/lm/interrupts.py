"""Ctrl-C (SIGINT) and SIGTERM: between training steps, never in the middle of one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The user asked to stop; the message says what was saved."""

    def __init__(self, signum: int, message: str = "") -> None:
        super().__init__(message)
        self.exit_code = 128 + signum  # the shell's convention: 130 for SIGINT, 143 for SIGTERM


class Interrupts:
    """A signal raises `Interrupted` at once; inside `held()` the first one only sets `pending`."""

    def __init__(self) -> None:
        self.pending = 0
        self._held = False

    def handle(self, signum: int, frame: FrameType | None) -> None:
        if not self._held or self.pending:
            raise Interrupted(signum)
        self.pending = signum

    @contextmanager
    def held(self) -> Iterator[None]:
        self._held = True
        try:
            yield
        finally:
            self._held = False


@contextmanager
def catch_signals() -> Iterator[Interrupts]:
    """Inside, SIGINT and SIGTERM go to the `Interrupts` that it yields."""
    interrupts = Interrupts()
    previous = {s: signal.signal(s, interrupts.handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupts
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
