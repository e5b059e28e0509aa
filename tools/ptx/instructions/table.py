"""Opcodes and who translates them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..parse import Statement
from ..types import Unsupported
from ..writer import Modifiers, Writer

# (the kernel's writer, the statement, what follows the opcode's first word): one line of C++
Handler = Callable[[Writer, Statement, Modifiers], str]
HANDLERS: dict[str, Handler] = {}


def handles(*opcodes: str) -> Callable[[Any], Any]:
    """Decorator: the function translates these opcodes, given by their first words."""

    def register(handler: Handler) -> Handler:
        for opcode in opcodes:
            assert opcode not in HANDLERS, opcode
            HANDLERS[opcode] = handler
        return handler

    return register


def translate(w: Writer, s: Statement) -> str:
    """C++ of a statement, with its guard. Raises Unsupported with the statement and its line in the PTX."""
    name = s.opcode.split(".")[0]
    try:
        if name not in HANDLERS:
            raise Unsupported(f"instruction {name}")
        code = HANDLERS[name](w, s, Modifiers(s))
        if s.guard:
            condition = w.value(s.guard.lstrip("!"), "bool")
            code = f"if ({'!' if s.guard[0] == '!' else ''}{condition}) {{ {code} }}"
    except (Unsupported, KeyError, ValueError, IndexError) as error:
        raise Unsupported(f"line {s.line}: {s.text}: {error}") from error
    return code
