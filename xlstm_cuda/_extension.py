"""The compiled extension xlstm_cuda._C: loaded once in a process, or one sentence that says what to do."""

from __future__ import annotations

from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

import torch

FOLDER = Path(__file__).parent


def refuse_second_copy(namespace: str) -> None:
    """Raises ImportError where this process has loaded the library before: defining an op twice would end it."""
    ops = getattr(torch.ops, namespace)
    if hasattr(ops, "mlstm_fwd"):
        first = getattr(ops, "loaded_from", "elsewhere")
        raise ImportError(
            f"xlstm_cuda: this process has loaded the library from {first} already and cannot load it once "
            f"more, from {FOLDER}: start another process."
        )


def load(namespace: str) -> ModuleType:
    """Imports xlstm_cuda._C, which defines torch.ops.<namespace>. Raises ImportError."""
    # Of this folder only: without it an editable installation of another clone would be asked, which may be older.
    if PathFinder.find_spec("xlstm_cuda._C", [str(FOLDER)]) is None:
        raise ImportError(f"xlstm_cuda: {_what_to_do()}")
    try:
        module = import_module("xlstm_cuda._C")
    except ImportError as error:
        if str(error).startswith("XLSTM_SIMD"):
            raise ImportError(f"xlstm_cuda: {error}") from error
        again = "install xlstm_cuda again"
        raise ImportError(f"xlstm_cuda: the extension in {FOLDER} cannot be loaded ({error}): {again}.") from error
    getattr(torch.ops, namespace).loaded_from = FOLDER
    return module


def _what_to_do() -> str:
    if not FOLDER.is_dir():
        return f"{FOLDER} is inside a zip, from where no compiled extension can be loaded: unzip it."
    if files := sorted(file.name for file in FOLDER.glob("_C.*")):
        return f"{FOLDER} was installed with another Python ({files[0]}): install xlstm_cuda with this one."
    if (FOLDER.parent / "setup.py").exists():
        return (
            f"{FOLDER.parent} is the source folder, and its extension is not built: `pip install -e .` there builds "
            "it; an installed xlstm_cuda is found from any other folder. backend='reference' works without it."
        )
    return f"{FOLDER} has no compiled extension: install xlstm_cuda again. backend='reference' works without it."
