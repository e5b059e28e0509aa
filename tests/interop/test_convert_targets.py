"""The folder that convert writes: whole or not at all, also where it is interrupted or killed."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.support.checkpoints import assert_equal, load, nxai_folder, renamed
from tests.support.paths import ROOT
from xlstm_cuda.interop.checkpoints import convert, folders, sources, targets

pytest.importorskip("safetensors")


def test_existing_targets(tmp_path: Path) -> None:
    source = nxai_folder(tmp_path / "nxai")
    target = tmp_path / "out"
    convert(source, target, "nxai")
    (target / "mine").touch()
    with pytest.raises(FileExistsError, match="exists; --overwrite replaces it"):
        convert(source, target, "hf")
    assert (target / "mine").exists()
    convert(source, target, "hf", overwrite=True)
    assert {path.name for path in target.iterdir()} == {"config.json", "model.safetensors"}
    (tmp_path / "home").mkdir()
    (tmp_path / "home/precious").touch()
    with pytest.raises(FileExistsError, match="is not the folder of a checkpoint"):
        convert(source, tmp_path / "home", "hf", overwrite=True)
    (tmp_path / "home/config.json").touch()  # as many other programs have
    with pytest.raises(FileExistsError, match="is not the folder of a checkpoint"):
        convert(source, tmp_path / "home", "hf", overwrite=True)
    assert (tmp_path / "home/precious").exists()
    for folder in (source, tmp_path):
        with pytest.raises(ValueError, match="holds the source"):
            convert(source, folder, "hf", overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"home", "nxai", "out"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_half_written_stays(overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = nxai_folder(tmp_path / "nxai")
    if overwrite:
        shutil.copytree(source, tmp_path / "out")
    read, calls = sources._Safetensors.read, 0

    def failing(self: Any, *place: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt
        return read(self, *place)

    monkeypatch.setattr(sources._Safetensors, "read", failing)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", "hf", overwrite=overwrite)
    assert {path.name for path in tmp_path.iterdir()} == {"nxai", *(["out"] if overwrite else [])}
    if overwrite:
        assert_equal(load(tmp_path / "out"), load(source))


def test_targets_that_are_links_or_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = nxai_folder(tmp_path / "nxai")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(FileExistsError, match="link exists"):
        convert(source, tmp_path / "link", "hf")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    convert(source, ".", "nxai", overwrite=True)
    assert_equal(load(tmp_path / "here"), load(source))
    assert {path.name for path in tmp_path.iterdir()} == {"here", "link", "nxai"}


def test_interrupted_in_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two renames, where names cannot be exchanged: the old folder comes back."""
    monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    source = nxai_folder(tmp_path / "nxai")
    shutil.copytree(source, tmp_path / "out")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", "hf", overwrite=True)
    assert_equal(load(tmp_path / "out"), load(source))
    assert {path.name for path in tmp_path.iterdir()} == {"nxai", "out"}


KILLED = """
import os, signal, sys
from pathlib import Path
from xlstm_cuda.interop.checkpoints import convert, folders

source, target, moment = sys.argv[1:]
exchange, rename = folders._exchange, Path.rename

def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def then_killed(call):
    return lambda *args: (call(*args), killed())

if moment == "before":
    folders._exchange = Path.rename = killed
elif moment == "exchanged":
    folders._exchange = Path.rename = then_killed(exchange)
else:  # between the two renames of a system that cannot exchange
    folders._exchange = lambda *_: False
    Path.rename = then_killed(rename)
convert(source, target, "hf", overwrite=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL")
@pytest.mark.parametrize("moment", ["before", "exchanged", "between renames"])
def test_killed_in_the_last_moment(moment: str, tmp_path: Path) -> None:
    """The target is there, old or new; where names cannot be exchanged, the next call brings it back and tidies up."""
    source, target = nxai_folder(tmp_path / "nxai"), tmp_path / "out"
    shutil.copytree(source, target)
    other = tmp_path / ".out.12345678.mine"
    other.mkdir()
    run = subprocess.run([sys.executable, "-c", KILLED, source, target, moment], cwd=tmp_path, env=with_root())
    assert run.returncode == -signal.SIGKILL
    assert target.exists() or moment == "between renames"
    with pytest.raises(FileExistsError, match="out exists; --overwrite replaces it"):
        convert(source, target, "hf")
    is_new = "backbone.embeddings.weight" in load(target)  # a file system that cannot exchange leaves the old one
    assert not is_new or moment == "exchanged"
    assert_equal(renamed(load(target)), load(source))
    assert {path.name for path in tmp_path.iterdir()} == {"nxai", "out", other.name}
    convert(source, target, "hf", overwrite=True)
    assert "backbone.embeddings.weight" in load(target)
    assert_equal(renamed(load(target)), load(source))


def with_root() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_a_running_call_is_left_alone(tmp_path: Path) -> None:
    source, target = nxai_folder(tmp_path / "nxai"), tmp_path / "out"
    with folders.new_folder(target, False) as new:
        convert(source, target, "nxai")
        assert new.exists()
        (new / "config.json").touch()
        (new / "model.safetensors").touch()
    assert {path.name for path in tmp_path.iterdir()} == {"nxai", "out"}
    assert {path.name for path in target.iterdir()} == {"config.json", "model.safetensors"}


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(targets, "_write_data", full)
    with pytest.raises(OSError, match=r"No space left on device: .*model.safetensors"):
        convert(nxai_folder(tmp_path / "nxai"), tmp_path / "out", "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["nxai"]
