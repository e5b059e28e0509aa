"""The law of dependencies: imports point one way, and kernels know nothing of torch."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "xlstm_cuda"
KERNELS = [ROOT / "csrc" / name for name in ("core", "cpu", "cuda")]

# what each part of the package, a file or a folder, may import of it; parts not named here may import everything
ALLOWED: dict[str, set[str]] = {
    "_states": set(),
    "_autocast": set(),
    "_children": {"_autocast"},
    "_extension": {"_C"},
    "_flops": set(),
    "_kept": set(),
    "_ops": {"_extension", "_flops", "_kept"},
    "_batching": set(),
    "_transforms": {"_autocast", "_batching"},
    "_autograd": {"_batching", "_kept", "_ops", "_transforms"},
    "_backend": {"_ops"},
    "_checks": {"_ops", "_states"},
    "reference": {"reference", "_states"},
    "_onnx": {"_onnx", "reference", "_states"},
    "functional": {
        "functional",
        "_autocast",
        "_autograd",
        "_backend",
        "_checks",
        "_onnx",
        "_ops",
        "_states",
        "_transforms",
        "reference",
    },
    "testing": {"_states"},
    "nn": {"nn", "functional", "_autocast", "_backend", "_checks", "_children", "_onnx", "_states", "_transforms"},
    "models": {"models", "nn", "functional", "_autocast", "_checks", "_children", "_states"},
    "distributed": {"distributed", "functional", "_ops", "_states"},
    "interop/__init__": set(),
    "interop/checkpoints": {"interop", "models", "nn"},
    "interop/feedforward": {"nn", "_children"},
    "interop/large": {"nn", "_autocast", "_children", "_states"},
    "interop/nxai": {"interop", "nn", "functional", "_autocast", "_children", "_states"},
    "interop/flashrnn": {"interop", "functional", "_autocast", "_states", "_transforms"},
    "interop/vllm": {"interop", "models", "nn", "functional", "_states"},
    "interop/lm_eval": {"interop", "models"},
    "interop/tirex": {"interop", "functional"},
    "interop/transformers": {"interop", "nn", "functional", "_states"},
    "interop/transformers_layers": {"interop", "nn"},
    "_moved": set(),
    "convert": {"_moved"},
    "integrations": {"_moved"},
}
TORCH_INCLUDE = re.compile(r'^\s*#\s*include\s*[<"](torch|ATen|c10|caffe2|aoti|pybind11|Python\.h)', re.MULTILINE)


def imported_names(file: Path, root: Path = PACKAGE) -> set[str]:
    """What a file imports, also inside of functions and for type checkers only: full names, with those of objects."""
    package = ["xlstm_cuda", *file.relative_to(root).parts[:-1]]
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names.update(f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names.update(arg.value for arg in node.args if isinstance(arg, ast.Constant))
    return {name for name in names if name.startswith("xlstm_cuda.")}


def imported(file: Path) -> set[str]:
    """Parts of xlstm_cuda that a file imports: the first name below the package."""
    return {name.split(".")[1] for name in imported_names(file)}


def packages(name: str) -> set[str]:
    """A module and the packages that it lies in, whose __init__ runs first."""
    return {name, *packages(name.rpartition(".")[0])} if name else set()


def import_graph(root: Path) -> dict[str, set[str]]:
    """Every module of the package in `root`, and those that must have run before it; its own packages run meanwhile."""
    files = {".".join(f.relative_to(root.parent).with_suffix("").parts): f for f in root.rglob("*.py")}
    files = {name.removesuffix(".__init__"): file for name, file in files.items()}

    def modules(file: Path) -> set[str]:
        names = (packages(name) & files.keys() for name in imported_names(file, root))
        return set().union(*names)

    return {name: modules(file) - packages(name) for name, file in files.items()}


def part(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def is_in(file: Path, name: str) -> bool:
    path = file.relative_to(PACKAGE).with_suffix("")
    return path.is_relative_to(name)


@pytest.mark.parametrize("name", ALLOWED)
def test_imports_point_one_way(name: str) -> None:
    files = [file for file in PACKAGE.rglob("*.py") if is_in(file, name)]
    assert files, f"xlstm_cuda/{name} is gone: update ALLOWED"
    for file in files:
        assert imported(file) <= ALLOWED[name], f"{file.relative_to(ROOT)} imports {imported(file) - ALLOWED[name]}"


def test_no_import_circle() -> None:
    TopologicalSorter(import_graph(PACKAGE)).prepare()  # raises CycleError, with the names


@pytest.mark.parametrize(
    "a", ["from . import b", "if TYPE_CHECKING:\n    from .b import B", "def f():\n    import xlstm_cuda.b.c"]
)
def test_import_circles_are_found(tmp_path: Path, a: str) -> None:
    root = tmp_path / "xlstm_cuda"
    (root / "b").mkdir(parents=True)
    for name, source in {"__init__": "", "a": a, "b/__init__": "from .c import B", "b/c": "from ..a import A"}.items():
        (root / f"{name}.py").write_text(source)
    with pytest.raises(CycleError, match="xlstm_cuda.a"):
        TopologicalSorter(import_graph(root)).prepare()


def test_who_imports_the_reference() -> None:
    users = {part(file) for file in PACKAGE.rglob("*.py") if "reference" in imported(file)}
    assert users == {"functional", "reference", "_onnx"}


def test_imports_are_found() -> None:
    files = (PACKAGE / "functional").glob("*.py")
    assert set().union(*map(imported, files)) == ALLOWED["functional"]
    assert imported(PACKAGE / "_extension.py") == {"_C"}


@pytest.mark.parametrize("folder", KERNELS, ids=lambda folder: folder.name)
def test_kernels_do_not_include_torch(folder: Path) -> None:
    files = [file for file in folder.rglob("*") if file.suffix in {".h", ".cpp", ".cu", ".cuh", ".hpp", ".inc"}]
    assert files
    guilty = [str(file.relative_to(ROOT)) for file in files if TORCH_INCLUDE.search(file.read_text())]
    assert not guilty


def test_torch_includes_are_found() -> None:
    ops = [file.read_text() for file in (ROOT / "csrc" / "ops").rglob("*.h")]
    assert any(TORCH_INCLUDE.search(text) for text in ops)


def test_core_does_not_include_the_cuda_runtime() -> None:
    for file in (ROOT / "csrc" / "core").rglob("*.h"):
        assert not re.search(r'#\s*include\s*[<"](cuda|cooperative)', file.read_text()), file.name
