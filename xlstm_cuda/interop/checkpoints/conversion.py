"""`convert`: what is read from where, piece by piece, to become which file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from . import checkpoints, configs, folders, targets
from .checkpoints import Checkpoint
from .layouts import LAYOUTS, Layout
from .parts import fused_shape

WEIGHTS = ("single", "fused")
DTYPES = ("float32", "bfloat16", "float16", "float64")
# Files beside the weights that belong to the model and not to a layout.
_SIDE_FILES = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "chat_template*"),
    *("generation_config.json", "LICENSE*"),
)


@dataclass
class Summary:
    """What `convert` has done."""

    source_layout: str  # one, or several ("nxai / xlstm_cuda") that differ in their configs only
    source_weights: str
    weights: str
    tensors: int
    files: int
    nbytes: int


def convert(
    source: str | Path,
    target: str | Path,
    to: str,
    *,
    weights: str = "single",
    dtype: str | torch.dtype | None = None,
    shard_size: int | str = "5GB",
    overwrite: bool = False,
    progress: bool = False,
) -> Summary:
    """Write the checkpoint `source` to the folder `target` in another layout, dtype or division into files.

    One tensor at a time is in memory; the target appears when all of it is written. Tokenizers are copied too.

    Args:
        source: folder with config.json or config.yaml and *.safetensors, *.bin or *.pt (with an index or without), or
            one such file beside its config. Its layout and weight_mode are recognised by the names of its tensors.
        target: folder to write.
        to: "hf", xLSTMForCausalLM of transformers; "nxai", xLSTMLarge of the package xlstm; "xlstm_cuda", xLSTMLarge of
            this library.
        weights: weight_mode, "single" or "fused". NX-AI's load_from_pretrained takes "single" only, and from_pretrained
            of transformers 5 fails for "fused".
        dtype: of all tensors, "float32", "bfloat16", "float16" or "float64"; None: as they are.
        shard_size: most bytes of a file, a number or text such as "500MB"; a larger tensor has a file for itself.
        overwrite: replace target if it is the folder of a checkpoint.
        progress: show a bar on a terminal, where tqdm is installed.

    Raises:
        FileNotFoundError, FileExistsError; ImportError where safetensors is missing and needed; ValueError for an
        option that does not exist, values too large for dtype, a model that the layout cannot hold, and a source that
        does not fit its config: one message for all tensors that are missing, extra or of the wrong shape.
    """
    source, target = Path(source), Path(target)
    size = _bytes(shard_size)
    wanted = as_dtype(dtype)
    _choice("to", to, tuple(LAYOUTS))
    _choice("weights", weights, WEIGHTS)
    folder = source.parent if source.is_file() else source
    if target.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise ValueError(f"convert: the target {target} holds the source {source}")
    layout = LAYOUTS[to]
    with checkpoints.opened(source) as checkpoint:
        fields = {**checkpoint.fields, "weight_mode": weights}
        layout.check(fields)
        _check_left_out(checkpoint, layout)
        names = layout.tensors(checkpoint.shapes, weights)
        entries = [_entry(checkpoint, name, parts, wanted) for name, parts in names.items()]
        nbytes = sum(entry.nbytes for entry in entries)
        largest = max(entries, key=lambda entry: entry.nbytes)
        fields["dtype"] = str(largest.dtype).removeprefix("torch.")
        config = layout.config(fields, checkpoint.config if checkpoint.layout is layout else None)
        with folders.new_folder(target, overwrite) as new, _bar(nbytes, progress) as written:
            configs.write(new / layout.config_file, config)
            targets.copy_side_files(folder, new, _SIDE_FILES)
            files = targets.write(new, entries, layout, size, written)
    return Summary(" / ".join(checkpoint.layout_names), checkpoint.weights, weights, len(entries), files, nbytes)


def _check_left_out(checkpoint: Checkpoint, layout: Layout) -> None:
    """Raises ValueError unless the parts that the layout does not store are zero."""
    for part in checkpoint.shapes:
        if layout.tensor_name(part) is None and checkpoint.read(part, torch.float64).any():
            kind = part.rpartition(".")[2]
            raise ValueError(f"convert: {part} is not zero, and {layout.model} has no such {kind}")


def _entry(checkpoint: Checkpoint, name: str, parts: list[str], dtype: torch.dtype | None) -> targets.Entry:
    dtype = dtype or checkpoint.dtype(parts)
    return targets.Entry(
        name=name,
        shape=fused_shape(checkpoint.shapes, parts),
        dtype=dtype,
        pieces=[partial(checkpoint.read, part, dtype) for part in parts],
    )


@contextmanager
def _bar(total: int, shown: bool) -> Iterator[Callable[[int], object]]:
    """A function that is told of written bytes."""
    try:
        from tqdm import tqdm
    except ImportError:
        shown = False
    if not shown:
        yield lambda nbytes: None
        return
    with tqdm(total=total, unit="B", unit_scale=True, disable=None) as bar:
        yield bar.update


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"convert: {name} must be one of {', '.join(allowed)}, got {value!r}")


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    _choice("dtype", name, DTYPES)
    found: torch.dtype = getattr(torch, name)
    return found


def _bytes(size: int | str) -> int:
    """A number of bytes, or text such as "5GB", "500 MB", "1GiB"."""
    text = str(size).upper().replace(" ", "").removesuffix("B")
    base = 1024 if text.endswith("I") else 1000
    text = text.removesuffix("I")
    power = "KMGT".find(text[-1:]) + 1 if text else 0
    digits = text[:-1] if power else text
    if not digits.isdecimal() or int(digits) == 0:
        raise ValueError(f"convert: shard_size must be a number of bytes or text such as 5GB, got {size!r}")
    return int(digits) * base**power
