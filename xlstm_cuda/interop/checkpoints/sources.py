"""Tensors of a checkpoint by name, read one at a time: safetensors files, or those of torch.save."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

_PATTERNS = (
    "model.safetensors",
    "model_*.safetensors",
    "*.safetensors",
    "pytorch_model*.bin",
    "*.bin",
    "*.pt",
    "*.pth",
)
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WRAPPERS = ("state_dict", "model")  # keys under which training scripts put the weights
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Source(Protocol):
    """shapes, dtypes: of all tensors, by name."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """The tensor's rows from start to stop."""


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """The checkpoint in a folder, or one file.

    Raises FileNotFoundError, ValueError where files cannot be read, ImportError where safetensors is missing.
    """
    files = _files(path)
    with ExitStack() as stack:
        yield _Safetensors(files, stack) if files[0].suffix == ".safetensors" else _Pickled(files)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"convert: there is no folder or file {path}")
    for name in _INDICES:
        if (path / name).exists():
            names = _indexed(path / name)
            missing = [file for file in names if not (path / file).exists()]
            if missing:
                raise FileNotFoundError(f"convert: {path / name} names files that are missing: {', '.join(missing)}")
            return [path / file for file in names]
    for pattern in _PATTERNS:
        if found := sorted(path.glob(pattern)):
            return found
    raise FileNotFoundError(f"convert: {path} holds no weights ({', '.join(_PATTERNS)})")


def _indexed(index: Path) -> list[str]:
    """The files that an index names."""
    try:
        names = list(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"convert: {index} is damaged: it has no weight_map of names and files") from error
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"convert: {index} is damaged: its weight_map names no files")
    for name in names:
        # A link in the folder is its owner's doing, as in the cache of Hugging Face's hub; a path is the index's.
        if not name.strip(".") or any(mark in name for mark in ("/", "\\", ":", "\0")):
            raise ValueError(f"convert: {index}: its weight_map may name files beside it only, got {name!r}")
    return sorted(set(names))


def _once(name: str, path: Path, places: dict[str, Path]) -> None:
    """Note where a tensor is; raises ValueError where it is in another file too."""
    if name in places:
        raise ValueError(f"convert: {name} is in {places[name]} and in {path}; give one file as the source")
    places[name] = path


class _Safetensors:
    def __init__(self, files: Sequence[Path], stack: ExitStack) -> None:
        try:
            from safetensors import SafetensorError, safe_open
        except ImportError as error:
            raise ImportError(
                "convert: safetensors files need the package safetensors: pip install 'xlstm-cuda[convert]'"
            ) from error
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._files: dict[str, Any] = {}
        places: dict[str, Path] = {}
        for path in files:
            try:
                file = stack.enter_context(safe_open(path, "pt"))
            except FileNotFoundError:
                raise
            except (SafetensorError, OSError) as error:
                raise ValueError(f"convert: {path} is not a safetensors file: {error}") from error
            for name in file.keys():  # noqa: SIM118 (not a dict)
                _once(name, path, places)
                view = file.get_slice(name)
                self.shapes[name] = tuple(view.get_shape())
                if (dtype := view.get_dtype()) not in DTYPES:
                    raise ValueError(f"convert: {path}: {name} has dtype {dtype}, which is not converted")
                self.dtypes[name] = DTYPES[dtype]
                self._files[name] = file

    def read(self, name: str, start: int, stop: int) -> Tensor:
        rows: Tensor = self._files[name].get_slice(name)[start:stop]
        return rows


class _Pickled:
    """Mapped into memory, so that only what is used is read (but for files of before PyTorch 1.6)."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._tensors: dict[str, Tensor] = {}
        places: dict[str, Path] = {}
        for path in files:
            try:
                loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            except OSError as error:
                raise ValueError(f"convert: {path} cannot be loaded: {error}") from error
            except Exception as error:  # many kinds; torch's text advises to execute what is in the file
                raise ValueError(
                    f"convert: {path} cannot be loaded: it is damaged, or holds objects other than tensors, "
                    "which could execute code; save the state dict alone"
                ) from error
            for wrapper in _WRAPPERS:
                if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
                    loaded = loaded[wrapper]
            if not isinstance(loaded, dict):
                raise ValueError(f"convert: {path} holds no state dict but {type(loaded).__name__}")
            for name, x in loaded.items():
                if isinstance(name, str) and isinstance(x, Tensor):
                    _once(name, path, places)
                    self._tensors[name] = _checked(x, name, path)
        self.shapes = {name: tuple(x.shape) for name, x in self._tensors.items()}
        self.dtypes = {name: x.dtype for name, x in self._tensors.items()}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        return self._tensors[name][start:stop]


def _checked(x: Tensor, name: str, path: Path) -> Tensor:
    if x.dtype not in DTYPES.values():
        raise ValueError(f"convert: {path}: {name} has dtype {x.dtype}, which is not converted")
    if x.layout != torch.strided or x.is_meta:
        raise ValueError(f"convert: {path}: {name} is a {'meta' if x.is_meta else x.layout} tensor, without plain data")
    if prod(x.shape) * x.element_size() > x.untyped_storage().nbytes():
        raise ValueError(f"convert: {path}: {name} has shape {tuple(x.shape)}, but not that many values in the file")
    return x
