"""Former names of modules: the modules themselves under both names, and no cost where they are not used."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from xlstm_cuda import _moved

MOVED = {
    "integrations": "interop",
    "integrations.nxai": "interop.nxai",
    "integrations.nxai.patching": "interop.nxai.patching",
    "integrations.tirex": "interop.tirex",
    "integrations.transformers": "interop.transformers",
    "convert": "interop.checkpoints",
    "convert.conversion": "interop.checkpoints.conversion",
}
NOTHING = """
import sys, torch
others = {*sys.modules}
import xlstm_cuda
print(*{*sys.modules} - others)
assert xlstm_cuda.integrations.nxai is xlstm_cuda.interop.nxai  # without an import of its own, as ever
"""


def run(program: str) -> str:
    """What a process of its own prints; it must say nothing besides."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize(("former", "present"), MOVED.items())
def test_is_the_module_itself(former: str, present: str) -> None:
    module = import_module(f"xlstm_cuda.{present}")
    assert import_module(f"xlstm_cuda.{former}") is module
    assert module.__name__ == f"xlstm_cuda.{present}" and module.__spec__.name == module.__name__


def test_in_every_form_of_import() -> None:
    """Where the former names come first."""
    lines = []
    for former, present in MOVED.items():
        package, _, name = f"xlstm_cuda.{former}".rpartition(".")
        lines.append(f"import {package}.{name} as a; from {package} import {name} as b; import {package}.{name}")
        lines.append(f"import xlstm_cuda.{present} as c; assert a is b is c is {package}.{name}")
    run("\n".join(lines))


def test_public_names() -> None:
    from xlstm_cuda.convert import Summary, convert, load_large
    from xlstm_cuda.interop import checkpoints

    assert (Summary, convert, load_large) == (checkpoints.Summary, checkpoints.convert, checkpoints.load_large)


def test_what_is_not_there_is_not_found() -> None:
    import_module("xlstm_cuda.convert")
    assert find_spec("xlstm_cuda.convert.nothing") is None
    assert find_spec("xlstm_cuda.convert.folders") is not None
    with pytest.raises(ModuleNotFoundError, match=r"xlstm_cuda\.convert\.nothing"):
        import_module("xlstm_cuda.convert.nothing")


def test_no_cost_before_the_first_use() -> None:
    new = run(NOTHING).split()
    assert "xlstm_cuda.interop.nxai" in new
    assert not [name for name in new if name.startswith(("xlstm_cuda.integrations", "xlstm_cuda.convert"))]
    assert "xlstm_cuda._moved" not in new
    assert not {"transformers", "safetensors", "tqdm", "xlstm", "xlstm_cuda.interop.checkpoints"} & {*new}


SLOW = "import threading\nmay_end = threading.Event()\nmay_end.wait()"


def test_finding_waits_for_no_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python holds its import lock while it looks for a module: who waited there for an import would wait forever."""
    package = tmp_path / "slow_package"
    package.mkdir()
    (package / "__init__.py").write_text(SLOW)
    (package / "part.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(_moved._PRESENT, "former_package", "slow_package")
    found: list[Any] = []
    look = partial(_moved._Finder().find_spec, "former_package.part", ["as", "it", "was"])
    importing = Thread(target=import_module, args=("slow_package",), daemon=True)
    finding = Thread(target=lambda: found.append(look()), daemon=True)
    importing.start()
    while not hasattr(module := sys.modules.get("slow_package"), "may_end"):
        assert importing.is_alive()
    finding.start()
    finding.join(30)
    waits = finding.is_alive()
    module.may_end.set()
    importing.join()
    monkeypatch.delitem(sys.modules, "slow_package")
    assert not waits and [spec.name for spec in found] == ["former_package.part"]
