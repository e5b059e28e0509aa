"""What the tests of bench/ share: small shapes, a command line, and packages that are not there."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from itertools import accumulate
from types import ModuleType

import pytest

from bench.__main__ import main
from bench.ops import Shape

SHAPES: dict[str, Shape] = {
    "mlstm": {"B": 2, "H": 2, "S": 70, "Dqk": 12, "Dv": 20},
    "mlstm_step": {"B": 2, "H": 3, "Dqk": 12, "Dv": 20},
    "slstm": {"B": 2, "S": 9, "H": 2, "D": 12},
    "slstm_step": {"B": 3, "H": 2, "D": 12},
    "lstm": {"B": 2, "S": 9, "H": 2, "D": 12},
    "lstm_step": {"B": 3, "H": 2, "D": 12},
    "causal_conv1d": {"B": 2, "S": 9, "F": 12, "K": 4},
    "headwise_linear": {"B": 2, "S": 9, "N": 3, "I": 4},
    "multihead_norm_gate": {"B": 2, "S": 9, "H": 2, "D": 12},
    "gated_activation": {"B": 2, "S": 9, "F": 12},
    "soft_cap": {"B": 2, "S": 9, "F": 12},
}


def run(arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and what was printed, on either stream."""
    repeats = ["--repeats", "2"] if arguments.startswith("run") else []
    status = main([*arguments.split(), *repeats])
    return status, "".join(capsys.readouterr())


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **contents: object) -> None:
    """An importable module of that name, with what holds it."""
    for package in accumulate(name.split("."), "{}.{}".format):
        module = ModuleType(package)
        module.__spec__ = ModuleSpec(package, None, is_package=True)
        module.__path__ = []
        vars(module).update(contents if package == name else {})
        monkeypatch.setitem(sys.modules, package, module)
