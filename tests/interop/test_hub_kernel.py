"""The form of the Hugging Face Hub, by its rules: the folder of a variant, layers, build.toml. Nothing is built."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from tests.support.paths import ROOT
from tools import build_toml, hub_kernel
from xlstm_cuda import _ops
from xlstm_cuda._extension import FOLDER

FILES = hub_kernel.python_files()


def written(folder: Path) -> Path:
    """A variant around the installed extension, whose ops are in the package's own namespace: not beside that one."""
    (library,) = FOLDER.glob("_C.*.so")
    return hub_kernel.write(folder, library, _ops.NAMESPACE, {"type": "cpu"}, "cpu")


def test_imports_are_relative_or_of_torch_and_python() -> None:
    allowed = {"torch", *sys.stdlib_module_names}
    for place, text in FILES.items():
        depth = len(Path(place).parts)
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level <= depth, f"{place} imports from above the folder"
                names = [] if node.level else [str(node.module)]
            assert {name.partition(".")[0] for name in names} <= allowed, (place, names)


def test_what_is_imported_is_there() -> None:
    for place, text in FILES.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                folder = list(Path(place).parts[:-1])
                base = folder[: len(folder) - node.level + 1] + (node.module or "").split(".")
                path = "/".join(part for part in base if part)
                targets = [path] if node.module else [f"{path}/{alias.name}".lstrip("/") for alias in node.names]
                for target in targets:
                    found = f"{target}.py" in FILES or f"{target}/__init__.py" in FILES
                    assert found or (path in FILES or f"{path}/__init__.py" in FILES), (place, target)


def layers() -> list[type[nn.Module]]:
    source = FILES["layers.py"].replace("from . import functional", "from xlstm_cuda import functional")
    namespace: dict[str, object] = {"__name__": "layers"}
    exec(compile(source, "layers.py", "exec"), namespace)
    return [value for value in namespace.values() if isinstance(value, type) and issubclass(value, nn.Module)]


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: layer.__name__)
def test_layers_are_forward_alone(layer: type[nn.Module]) -> None:
    """What `kernelize` puts in the place of another layer's forward: no constructor and no members of its own."""
    assert layer.__init__ is nn.Module.__init__
    own = {name for name, _ in inspect.getmembers(layer)} - {name for name, _ in inspect.getmembers(nn.Module)}
    assert own <= {"can_torch_compile", "has_backward"}


def test_build_toml_lists_what_cmake_builds() -> None:
    """And every file is there."""
    assert build_toml.FILE.read_text() == build_toml.text(), "python -m tools.build_toml"
    configuration = hub_kernel.tomllib.loads(build_toml.text())
    sections = [configuration["torch"], *configuration["kernel"].values()]
    for section in sections:
        assert all((ROOT / file).is_file() for file in section["src"])
    cpu = {file for section in sections for file in section["src"] if section.get("backend") != "cuda"}
    assert "csrc/cpu/simd/gemm.cpp" in cpu and "csrc/ops/mlstm_step.cpp" in cpu
    assert "csrc/cuda/recurrent/step.cu" in configuration["kernel"]["cuda"]["src"]
    levels = {section for section in configuration["kernel"] if section.startswith("simd_")}
    assert all(f"XLSTM_LEVEL({level}, " in (ROOT / "torch-ext" / "simd_levels.inc").read_text() for level in levels)


def test_other_sources_have_another_name() -> None:
    name = hub_kernel.identifier(FILES, "cpu")
    assert name.isidentifier() and name == hub_kernel.identifier(dict(FILES), "cpu")
    assert name != hub_kernel.identifier({**FILES, "_ops.py": FILES["_ops.py"] + "\n"}, "cpu")


PROGRAM = """
import importlib.util, json, sys
from pathlib import Path
import torch
folder = Path(sys.argv[1])
name = "a_name_of_the_loader"  # as `kernels` does it
spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
assert not any(key == "xlstm_cuda" or key.startswith("xlstm_cuda.") for key in sys.modules)
q, k, v = torch.randn(3, 1, 2, 30, 8, dtype=torch.float64, requires_grad=True)
i, f = torch.randn(2, 1, 2, 30, dtype=torch.float64)
h = module.layers.mLSTM()(q, k, v, i, f)
torch.testing.assert_close(h, module.mlstm(q, k, v, i, f, backend="reference"))
x, R = torch.randn(2, 9, 4, 2, 3), torch.randn(4, 2, 3, 3)
for layer, function in ((module.layers.sLSTM(), module.slstm), (module.layers.LSTM(), module.lstm)):
    torch.testing.assert_close(layer(x, R), function(x, R, None, backend="reference"), rtol=1e-4, atol=1e-4)
convolution = torch.nn.Conv1d(4, 4, 3, groups=4, padding=2)
y = module.layers.CausalConv1d.forward(convolution, torch.ones(1, 5, 4))
torch.testing.assert_close(y, convolution(torch.ones(1, 4, 5))[:, :, :5].mT)
halves = torch.randn(2, 6)
torch.testing.assert_close(module.layers.SiluAndMul()(halves), torch.nn.functional.silu(halves[:, :3]) * halves[:, 3:])
state = module.mlstm(q, k, v, i, f, return_state=True)[1]
assert type(state) is module.MLSTMState
compiled = torch.compile(module.layers.mLSTM(), fullgraph=True, backend="aot_eager")
torch.testing.assert_close(compiled(q, k, v, i, f), h)
print("the same numbers")
"""


@pytest.mark.skipif(not _ops.has_kernel(_ops.NAMESPACE, "mlstm_fwd", "cpu"), reason="the extension is not built")
def test_it_runs_from_any_folder_under_any_name(tmp_path: Path) -> None:
    variant = written(tmp_path)
    metadata = json.loads((variant / "metadata.json").read_text())
    assert set(metadata["digest"]["files"]) | {"metadata.json"} == {
        str(file.relative_to(variant)) for file in variant.rglob("*") if file.is_file()
    }
    command = [sys.executable, "-c", PROGRAM, str(variant)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 0 and "the same numbers" in done.stdout, done.stderr[-2000:]


def test_a_folder_without_its_library_says_so(tmp_path: Path) -> None:
    variant = written(tmp_path)
    for file in variant.glob("*.so"):
        file.unlink()
    program = "import sys; sys.path.insert(0, '..'); import importlib; v = importlib.import_module(sys.argv[1]); "
    program += "import torch; v.mlstm(*torch.zeros(3, 1, 1, 2, 2), *torch.zeros(2, 1, 1, 2))"
    named = variant.rename(variant.with_name("variant"))
    command = [sys.executable, "-c", program, "variant"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=named)
    assert "must hold one library, found []" in done.stderr
