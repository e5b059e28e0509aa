"""The Makefile builds the CUDA kernels where XLSTM_CUDA or a GPU asks for them, and anew when the choice changes.

It installs what pyproject.toml names.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.paths import ROOT

LEFT_OUT = "the CUDA kernels are left out"
# In place of the interpreter: looks for a GPU as the real one does, and notes what it is asked to install.
INTERPRETER = f"""#!/bin/sh
case "$*" in
  *tools.gpu_check*) exec {sys.executable} "$@" ;;
  *"pip install"*) echo "install $XLSTM_CUDA" ;;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., str]:
    """`make demo` in a folder with no sources, on a machine with nvcc: what it printed. gpu: whether there is one."""
    for name in ("Makefile", "setup.py", "CMakeLists.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("csrc", "cmake", "tests", "bin"):
        (tmp_path / folder).mkdir()

    def program(name: str, text: str) -> None:
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)

    def run(gpu: bool = False, **environment: str) -> str:
        program("nvidia-smi", f"#!/bin/sh\n{'echo GPU 0: Imaginary GPU' if gpu else 'exit 9'}\n")
        kept = {key: value for key, value in os.environ.items() if key not in ("XLSTM_CUDA", "TORCH_CUDA_ARCH_LIST")}
        kept = {key: value for key, value in kept.items() if not key.startswith(("MAKE", "MFLAGS"))}
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        command = ["make", "--no-print-directory", "demo", f"PYTHON={tmp_path / 'bin' / 'python'}"]
        result = subprocess.run(
            command, cwd=tmp_path, env={**kept, "PATH": path, **environment}, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        return "\n".join(line for line in result.stdout.splitlines() if not line.startswith(str(tmp_path)))

    program("nvcc", "#!/bin/sh\n")
    program("python", INTERPRETER)
    return run


def installs(output: str) -> list[str]:
    return [line.removeprefix("install ") for line in output.splitlines() if line.startswith("install ")]


def test_without_a_gpu_they_are_left_out_and_the_line_says_how_to_get_them(make: Callable[..., str]) -> None:
    output = make()
    assert installs(output) == ["off"]
    line = next(line for line in output.splitlines() if LEFT_OUT in line)
    assert "XLSTM_CUDA=on" in line


def test_a_gpu_leaves_it_to_nvcc(make: Callable[..., str]) -> None:
    output = make(gpu=True)
    assert installs(output) == ["auto"] and LEFT_OUT not in output


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("choice", ["on", "off", "auto"])
def test_the_environment_wins(make: Callable[..., str], choice: str, gpu: bool) -> None:
    output = make(gpu, XLSTM_CUDA=choice)
    assert installs(output) == [choice] and LEFT_OUT not in output


def test_another_choice_builds_again_and_the_same_does_not(make: Callable[..., str]) -> None:
    assert installs(make()) == ["off"]
    assert installs(make()) == []
    assert installs(make(XLSTM_CUDA="off")) == []
    assert installs(make(XLSTM_CUDA="on")) == ["on"]
    assert installs(make(XLSTM_CUDA="on")) == []
    assert installs(make(XLSTM_CUDA="on", TORCH_CUDA_ARCH_LIST="9.0a")) == ["on"]
    assert installs(make(XLSTM_CUDA="on", TORCH_CUDA_ARCH_LIST="9.0a")) == []
    assert installs(make()) == ["off"]
    assert installs(make(gpu=True)) == ["auto"]


def test_packages_of_extras() -> None:
    """Those that the built package has in its metadata, and pip would install; those of an extra in it too."""
    command = [sys.executable, ROOT / "tools" / "packages.py", "test", "peers"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    metadata = [Requirement(line) for line in requires("xlstm-cuda") or []]
    extras = ("test", "peers", "examples")  # the last one is part of the first
    asked = {r.name for r in metadata if any(r.marker and r.marker.evaluate({"extra": extra}) for extra in extras)}
    found = [r for r in map(Requirement, printed) if r.marker is None or r.marker.evaluate()]
    assert {r.name for r in found} == asked - {"xlstm-cuda"}
