"""The public objects of the package, one a line: what users can import and how they call it.

    python tests/build/public_api.py    # writes public_api.txt anew

A signature here is names, kinds and defaults of the parameters. Annotations are left out: Python's versions write them
in different ways, and a caller does not pass them.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, get_origin
from unittest import mock

from xlstm_cuda import __main__ as cli

FILE = Path(__file__).with_name("public_api.txt")
COMMAND = "python -m xlstm_cuda"
MODULES = (
    "xlstm_cuda",
    "xlstm_cuda.distributed",
    "xlstm_cuda.functional",
    "xlstm_cuda.nn",
    "xlstm_cuda.models",
    "xlstm_cuda.models.weights",
    "xlstm_cuda.interop.checkpoints",
    "xlstm_cuda.interop.flashrnn",
    "xlstm_cuda.interop.lm_eval",
    "xlstm_cuda.interop.nxai",
    "xlstm_cuda.interop.transformers",
    "xlstm_cuda.interop.tirex",
    "xlstm_cuda.convert",
    "xlstm_cuda.integrations.nxai",
    "xlstm_cuda.integrations.transformers",
    "xlstm_cuda.integrations.tirex",
    "xlstm_cuda.testing",
    "xlstm_cuda.reference",
)


def public_api() -> dict[str, dict[str, str]]:
    """Of each module that can be imported here, and of the command: names, and what follows each name in its line."""
    found = {COMMAND: dict(commands())}
    for name in MODULES:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "xlstm_cuda":
                raise
            continue  # an optional package is not installed
        found[name] = dict(members(name, module))
    return found


def members(path: str, module: ModuleType) -> Iterator[tuple[str, str]]:
    """path: as users import the module, which may have another name by now."""
    for name in module.__all__:
        yield from described(f"{path}.{name}", getattr(module, name))


def described(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if inspect.isclass(value) and get_origin(value) is None:  # list[int] is a class too in Python 3.10
        yield name, f"class {signature(value)}"
        for method in methods(value):
            yield from described(f"{name}.{method}", inspect.getattr_static(value, method))
    elif isinstance(value, (classmethod, staticmethod)):
        yield name, f"{type(value).__name__} {signature(value.__func__)}"
    elif inspect.isroutine(value) or isinstance(value, partial):
        yield name, signature(value)
    elif isinstance(value, (property, ModuleType)):
        yield name, type(value).__name__
    else:
        yield name, "value"


def methods(cls: type) -> list[str]:
    """Public methods and properties that this package gives the class; those of torch and Python are theirs."""
    own = (base for base in cls.__mro__ if base.__module__.startswith("xlstm_cuda"))
    return sorted(
        {
            name
            for base in own
            for name, value in vars(base).items()
            if (not name.startswith("_") or name == "__call__")
            and (inspect.isfunction(value) or isinstance(value, (classmethod, staticmethod, property)))
        }
    )


def signature(function: Any) -> str:
    parameters = inspect.signature(function).parameters.values()
    empty = inspect.Parameter.empty
    defaults = [p.default if p.default is empty else Default(p.default) for p in parameters]
    plain = [p.replace(annotation=empty, default=d) for p, d in zip(parameters, defaults, strict=True)]
    return str(inspect.Signature(plain))


class Default:
    """A default value, printed in the same way by every Python, whatever address or private name it has."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"<{type(self.value).__name__}>" if callable(self.value) else repr(self.value)


def commands() -> Iterator[tuple[str, str]]:
    """The subcommands of `python -m xlstm_cuda`, and the options of each."""
    yield from options(COMMAND, parser())


def options(command: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield f"{command} {name}", "command"
                yield from options(f"{command} {name}", child)
        elif action.default != argparse.SUPPRESS:  # not --help, not --version
            names = "|".join(action.option_strings) or action.dest
            kind = "option" if action.option_strings else "argument"
            yield f"{command} {names}", f"required {kind}" if action.required else f"{kind}, default {action.default!r}"


def parser() -> argparse.ArgumentParser:
    """The one that main() makes, before it parses anything."""
    with mock.patch.object(argparse.ArgumentParser, "parse_args", autospec=True, side_effect=InterruptedError) as parse:
        try:
            cli.main()
        except InterruptedError:
            return parse.call_args.args[0]
    raise AssertionError("main() parsed no arguments")


def read() -> dict[str, dict[str, str]]:
    """What the file says, as public_api() would return it."""
    sections = FILE.read_text().removeprefix("# ").split("\n# ")
    return {
        module: dict(line.split(": ", 1) for line in lines) for module, *lines in (s.splitlines() for s in sections)
    }


def write() -> None:
    api = public_api()
    if missing := {COMMAND, *MODULES} - api.keys():
        raise SystemExit(f"not written, for these cannot be imported here: {', '.join(sorted(missing))}")
    sections = (f"# {module}\n" + "".join(f"{name}: {rest}\n" for name, rest in api[module].items()) for module in api)
    FILE.write_text("".join(sections))


if __name__ == "__main__":
    write()
