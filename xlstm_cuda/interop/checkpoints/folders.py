"""A folder that appears when it is complete, in the place of another one where that is asked for."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .layouts import LAYOUTS
from .sources import SUFFIXES

_HIDDEN = ".xlstm_cuda-convert"  # how the name of a hidden folder ends
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux


@contextmanager
def new_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to write to, which takes target's place at the end of the block, and is removed after an error.

    Whenever the process is killed, target is the old folder or the new one where the system can exchange two names at
    once (Linux); elsewhere it can be missing for a moment, and the next call brings it back. What a killed process
    left, a hidden folder, the next call with the same target removes.
    Raises FileExistsError where target exists and must not, or is not the folder of a checkpoint.
    """
    if target.name in ("", ".."):  # "." cannot be renamed
        target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    _tidy(target)
    if os.path.lexists(target):
        if not overwrite:
            raise FileExistsError(f"convert: {target} exists; --overwrite replaces it")
        if not target.is_dir() or (any(target.iterdir()) and not _is_checkpoint(target)):
            raise FileExistsError(f"convert: {target} is not the folder of a checkpoint, and is not overwritten")
    hidden = tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=_HIDDEN, dir=target.parent)
    with hidden as name, _lock(Path(name)):
        new, old = Path(name, "new"), Path(name, "old")
        new.mkdir()
        yield new
        if target.exists() and _exchange(new, target):
            return
        try:
            if target.exists():
                target.rename(old)
            new.rename(target)
        except BaseException:  # Ctrl-C between the two must not lose the old one either
            if old.exists() and not target.exists():
                old.rename(target)
            raise


def _is_checkpoint(folder: Path) -> bool:
    """A config alone does not tell: many kinds of folders have a config.json."""
    names = {path.name for path in folder.iterdir()}
    has_config = any(layout.config_file in names for layout in LAYOUTS.values())
    return has_config and any(name.endswith(SUFFIXES) for name in names)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step; False where system or file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    names = os.fsencode(first), os.fsencode(second)
    return bool(renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def _tidy(target: Path) -> None:
    """Remove the hidden folders of calls that were killed, those with this target; first bring back what they hid."""
    name = re.compile(re.escape(f".{target.name}.") + r"\w{8}" + re.escape(_HIDDEN))
    for hidden in [path for path in target.parent.iterdir() if name.fullmatch(path.name)]:
        with _lock(hidden) as dead:
            if not dead:
                continue
            if os.path.lexists(hidden / "old") and not os.path.lexists(target):
                (hidden / "old").rename(target)
            shutil.rmtree(hidden, ignore_errors=True)


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Whether the folder was free; it is locked until the end of the block, or of the process. False where unknown."""
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield False
        return
    try:
        free = False
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        yield free
    finally:
        os.close(descriptor)
