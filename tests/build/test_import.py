"""What `import xlstm_cuda` brings along, and what it says where it cannot work, each in an interpreter of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from xlstm_cuda import _C, __version__

PACKAGE = Path(_C.__file__).parent
MAX_OTHERS = 50  # modules that neither torch has imported nor this package holds
# One token of ones: i = 1 is the larger exponent, so that C = n = 1, and h = C q / max(|n q|, exp(-1)) = 1.
CALL = "import torch, xlstm_cuda; x = torch.ones(1, 1, 1); print(xlstm_cuda.mlstm(*[x[..., None]] * 3, x, x).item())"


def python(*arguments: str, path: Path = PACKAGE.parent) -> subprocess.CompletedProcess[str]:
    """Runs python with the package that is in `path`, a folder or a zip."""
    folder = path if path.is_dir() else path.parent
    env = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run([sys.executable, *arguments], env=env, cwd=folder, capture_output=True, text=True)


def copy_of_the_package(root: Path, extension: bool = False) -> None:
    skip = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(PACKAGE, root / "xlstm_cuda", ignore=skip)
    if extension:
        shutil.copy(_C.__file__, root / "xlstm_cuda")


def test_computes() -> None:
    assert float(python("-c", CALL).stdout) == pytest.approx(1, abs=1e-5)


def test_import_brings_few_modules() -> None:
    """torch._dynamo and what it imports take longer than all of torch."""
    result = python(
        "-c", "import sys, torch; before = {*sys.modules}; import xlstm_cuda; print(*{*sys.modules} - before)"
    )
    new = result.stdout.split()
    assert "xlstm_cuda.functional" in new
    assert "torch._dynamo" not in new
    assert len([name for name in new if name.partition(".")[0] != "xlstm_cuda"]) <= MAX_OTHERS


FORMER_PLACES = {
    "models.lm": ["xLSTMLMModel", "xLSTMLMModelConfig"],
    "models.large": ["xLSTMLarge", "xLSTMLargeConfig", "LargeState"],
    "models.large.norms": ["MultiHeadLayerNorm"],
    "models.weights": ["fuse_weights", "split_weights"],
    "models.generation": ["generate", "stream"],
    "models.decoding": ["reorder_state"],
    "models.cuda_graph": ["GraphedStep"],
    "models.slots": ["SlotDecoder"],
    "models.sampling": ["Sampling"],
    "models.beams": ["beam_search"],
}


def test_former_places() -> None:
    """As attributes, without an import of their own, and as modules to import."""
    attributes = "; ".join(f"print('{module}', *vars(xlstm_cuda.{module}))" for module in FORMER_PLACES)
    imports = "; ".join(f"import xlstm_cuda.{module}" for module in FORMER_PLACES)
    result = python("-c", f"import xlstm_cuda; {attributes}; {imports}")
    assert result.returncode == 0, result.stderr
    found = {line.split()[0]: {*line.split()[1:]} for line in result.stdout.splitlines()}
    assert found.keys() == FORMER_PLACES.keys()
    for module, names in FORMER_PLACES.items():
        assert {*names} <= found[module], module


def test_version() -> None:
    assert python("-m", "xlstm_cuda", "--version").stdout == f"xlstm_cuda {__version__}\n"


@pytest.mark.parametrize("other", [True, False])
def test_a_second_copy_is_refused(tmp_path: Path, other: bool) -> None:
    """Also the same one a second time. torch would end the process when an op is defined again."""
    first, second = tmp_path / "first", tmp_path / "second" if other else tmp_path / "first"
    copy_of_the_package(first, extension=True)
    if other:
        copy_of_the_package(second, extension=True)
    program = f"""
import sys, xlstm_cuda
for name in [name for name in sys.modules if name.startswith("xlstm_cuda")]:
    del sys.modules[name]
sys.path.insert(0, {str(second)!r})
try:
    import xlstm_cuda
except ImportError as error:
    print(error)
"""
    result = python("-c", program, path=first)
    assert result.stdout == (
        f"xlstm_cuda: this process has loaded the library from {first}/xlstm_cuda already and cannot load it once "
        f"more, from {second}/xlstm_cuda: start another process.\n"
    ), result.stderr


def zipped(root: Path) -> Path:
    copy_of_the_package(root / "files", extension=True)
    return Path(shutil.make_archive(str(root / "library"), "zip", root / "files"))


def source_folder(root: Path) -> Path:
    copy_of_the_package(root)
    (root / "setup.py").touch()
    return root


def broken(root: Path) -> Path:
    copy_of_the_package(root)
    (root / "xlstm_cuda" / Path(_C.__file__).name).write_text("no library")
    return root


def without_extension(root: Path) -> Path:
    copy_of_the_package(root)
    return root


def of_another_python(root: Path) -> Path:
    copy_of_the_package(root)
    (root / "xlstm_cuda" / "_C.cpython-27-other.so").touch()
    return root


FOLDERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "zip": (zipped, "is inside a zip, from where no compiled extension can be loaded: unzip it."),
    "source folder": (source_folder, "is the source folder, and its extension is not built: `pip install -e .` there"),
    "not built": (without_extension, "has no compiled extension: install xlstm_cuda again."),
    "broken": (broken, "cannot be loaded ("),
    "another Python": (of_another_python, "was installed with another Python (_C.cpython-27-other.so): install"),
}
CALLS = (["-c", CALL], ["-c", "import xlstm_cuda; xlstm_cuda.info()"], ["-m", "xlstm_cuda", "info"])


@pytest.mark.parametrize(("make", "sentence"), FOLDERS.values(), ids=FOLDERS.keys())
def test_no_extension(tmp_path: Path, make: Callable[[Path], Path], sentence: str) -> None:
    path = make(tmp_path)
    for call in CALLS if make is without_extension else CALLS[:1]:
        result = python(*call, path=path)
        last = result.stderr.splitlines()[-1]
        assert result.returncode == 1 and "xlstm_cuda: " in last and sentence in last, result.stderr


def test_a_wrong_simd_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLSTM_SIMD", "sse9")
    for call in (CALLS[0], CALLS[-1]):
        last = python(*call).stderr.splitlines()[-1]
        assert re.fullmatch(r"(ImportError: )?xlstm_cuda: XLSTM_SIMD must be one of .*, got sse9", last), last
