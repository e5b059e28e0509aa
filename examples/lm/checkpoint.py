"""Checkpoints: tensors in a safetensors file, everything else in JSON. Nothing in them is ever executed.

A checkpoint is a folder with `checkpoint.json` and the tensor file it names together with its SHA-256. Both are
written to a temporary file and renamed; renaming the JSON is the moment the new checkpoint replaces the old one, so a
run that is killed at any time leaves the old or the new checkpoint, never a mixture.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

FORMAT = "xlstm_cuda.examples.train_lm"
VERSION = 1
JSON_NAME = "checkpoint.json"
TENSORS_NAME = re.compile(r"step-\d{8}\.safetensors")


class CheckpointError(RuntimeError):
    """The checkpoint cannot be written or used; the message is one sentence for the user."""


def exists(folder: Path) -> bool:
    return (folder / JSON_NAME).exists()


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot make the folder {folder}: {error.strerror or error}") from None


def save(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Replace the checkpoint in `folder`; `meta` is any JSON object with an integer "step"."""
    name = f"step-{meta['step']:08d}.safetensors"
    # Copies: safetensors refuses tensors that share memory, such as tied weights.
    payload = safetensors.torch.save({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()})
    document = {
        "format": FORMAT,
        "version": VERSION,
        **meta,
        "tensors": {"file": name, "sha256": hashlib.sha256(payload).hexdigest()},
    }
    make_folder(folder)
    try:
        write_atomically(folder / name, payload)
        write_atomically(folder / JSON_NAME, json.dumps(document, indent=2).encode() + b"\n")
        for old in folder.glob("step-*"):
            if old.name != name:
                old.unlink()
    except OSError as error:
        raise CheckpointError(f"cannot write the checkpoint in {folder}: {error.strerror or error}") from None


def remove(folder: Path) -> None:
    try:
        (folder / JSON_NAME).unlink(missing_ok=True)
        for file in folder.glob("step-*"):
            file.unlink()
    except OSError as error:
        raise CheckpointError(f"cannot remove the checkpoint in {folder}: {error.strerror or error}") from None


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON object of the checkpoint in `folder`, checked against each other."""
    meta = load_meta(folder)
    return _load_tensors(folder, meta.get("tensors")), meta


def load_meta(folder: Path) -> dict[str, Any]:
    """The JSON object alone."""
    path = folder / JSON_NAME
    try:
        meta = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint in {folder} ({JSON_NAME} is missing)") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError:  # not JSON, or not UTF-8
        raise CheckpointError(f"{path} is damaged or not a checkpoint of this example (it is not JSON)") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this example (its format is not {FORMAT!r})")
    if meta.get("version") != VERSION:
        raise CheckpointError(
            f"{path} has format version {meta.get('version')!r}; this program reads version {VERSION}"
        )
    return meta


def _load_tensors(folder: Path, entry: Any) -> dict[str, Tensor]:
    name, sha256 = (entry.get("file"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
    if not isinstance(name, str) or not TENSORS_NAME.fullmatch(name):
        raise CheckpointError(f"{folder / JSON_NAME} does not name its tensor file")
    try:
        payload = (folder / name).read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read the tensor file {folder / name}: {error.strerror or error}") from None
    if hashlib.sha256(payload).hexdigest() != sha256:
        raise CheckpointError(f"{folder / name} is damaged or from another run (its SHA-256 is not the recorded one)")
    try:
        return safetensors.torch.load(payload)
    except SafetensorError as error:
        raise CheckpointError(f"{folder / name} is not a safetensors file: {error}") from None


def write_atomically(path: Path, payload: bytes) -> None:
    """Write so that `path` holds either its old content or all of `payload`, even after a power cut."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
