"""The training example: bit-exact resume, interrupts, damaged checkpoints, data errors, held-out split, report."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import pickle
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import pytest
import safetensors.torch
import torch

from tests.support.paths import ROOT

EXAMPLES = ROOT / "examples"
sys.path.insert(0, str(EXAMPLES))

import train_lm  # noqa: E402
from lm import checkpoint, data, training  # noqa: E402
from lm.baseline import LSTMLanguageModel, lstm_parameters, matching_lstm, parameter_count  # noqa: E402

STEPS = 6
HANGS = 240  # seconds after which a program is given up
TINY = shlex.split("""
--seq-len 16 --batch-size 2 --dim 32 --blocks 2 --heads 2 --slstm-at 1 --dropout 0.1
--save-every 2 --eval-windows 4 --sample-bytes 5 --no-speed --steps
""")


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    words = random.Random(0).choices(["state", "gate", "cell", "norm", "memory", "\n"], k=1000)
    path = tmp_path_factory.mktemp("data") / "words.txt"
    path.write_text(" ".join(words))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, text) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("run")
    assert run(out, text) == 0
    return out


def run(out: Path, text: Path, *more: str) -> int:
    return train_lm.main(["--data", str(text), "--out", str(out), *TINY, str(STEPS), *more])


def at_step(monkeypatch, call: int, action: Callable[[], None]) -> None:
    """Act during training step number `call` of this process, counted from 1."""
    original, calls = training.train_step, []

    def step(*args) -> float:
        calls.append(None)
        if len(calls) == call:
            action()
        return original(*args)

    monkeypatch.setattr(training, "train_step", step)


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, optimizer moments, random state and losses of both models, bit by bit."""
    for name in ("xlstm", "lstm"):
        a, b = checkpoint.load(one / name)[0], checkpoint.load(other / name)[0]
        assert a.keys() == b.keys()
        assert len(a["losses"]) == STEPS
        for key in a:
            assert torch.equal(a[key], b[key]), f"{name}: {key}"


@pytest.mark.parametrize(("call", "model"), [(1, "xlstm"), (3, "xlstm"), (STEPS + 2, "lstm")])
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_run_resumes_bit_exactly(
    tmp_path, text, finished, monkeypatch, capsys, call, model, signum, status
):
    at_step(monkeypatch, call, lambda: signal.raise_signal(signum))
    assert run(tmp_path, text) == status
    step = (call - 1) % STEPS + 1
    assert f"interrupted: saved {model} at step {step} of {STEPS}" in capsys.readouterr().err
    meta = checkpoint.load(tmp_path / model)[1]
    assert (meta["step"], meta["bytes_seen"], meta["finished"]) == (step, step * 2 * 16, False)
    assert run(tmp_path, text, "--resume") == 0
    assert_same_run(tmp_path, finished)


def test_killed_run_loses_only_the_steps_since_the_last_checkpoint(tmp_path, text, finished, monkeypatch):
    def die() -> None:
        raise ZeroDivisionError

    at_step(monkeypatch, 4, die)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, text)
    assert checkpoint.load(tmp_path / "xlstm")[1]["step"] == 2
    assert run(tmp_path, text, "--resume") == 0
    assert_same_run(tmp_path, finished)


def test_time_limit_leaves_an_unfinished_run_to_resume(tmp_path, text, finished, capsys):
    assert run(tmp_path, text, "--minutes", "1e-9") == 0
    assert f"at step 1 of {STEPS}; --resume continues" in capsys.readouterr().out
    assert {checkpoint.load(tmp_path / name)[1]["step"] for name in ("xlstm", "lstm")} == {1}
    assert run(tmp_path, text, "--resume") == 0
    assert_same_run(tmp_path, finished)


def test_resuming_a_finished_run_changes_nothing(tmp_path, text, finished):
    out = shutil.copytree(finished, tmp_path / "run")
    assert run(out, text, "--resume") == 0
    assert_same_run(out, finished)


def test_seed_matters(tmp_path, text, finished):
    assert run(tmp_path, text, "--seed", "1") == 0
    one, other = (checkpoint.load(out / "xlstm")[0]["losses"] for out in (finished, tmp_path))
    assert not torch.equal(one, other)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_to_the_program(tmp_path, text, signum, status):
    command = [sys.executable, EXAMPLES / "train_lm.py", "--data", text, "--out", tmp_path, *TINY, "1000000"]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + HANGS
        while not checkpoint.exists(tmp_path / "xlstm") and program.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        program.send_signal(signum)
        _, err = program.communicate(timeout=HANGS)
    finally:
        program.kill()
    assert program.returncode == status, err
    assert "Traceback" not in err
    step = checkpoint.load(tmp_path / "xlstm")[1]["step"]
    assert step >= 2
    assert err.rstrip().splitlines()[-1].startswith(f"interrupted: saved xlstm at step {step} of 1000000")


def test_options_of_a_resumed_run_must_be_the_same(finished, text, capsys):
    assert run(finished, text, "--resume", "--lr", "0.5") == 2
    assert "settings.lr is 0.005 there and 0.5 now" in capsys.readouterr().err
    assert run(finished, text, "--resume", "--dim", "48") == 2
    assert "embedding_dim is 32 there and 48 now" in capsys.readouterr().err


def test_resume_without_a_run(tmp_path, text, capsys):
    assert run(tmp_path, text, "--resume") == 2
    assert "no checkpoint to resume" in capsys.readouterr().err


def test_unfinished_run_is_not_overwritten_unasked(tmp_path, finished, text, monkeypatch, capsys):
    out = shutil.copytree(finished, tmp_path / "run")
    at_step(monkeypatch, 3, lambda: signal.raise_signal(signal.SIGINT))
    assert run(out, text, "--seed", "1") == 130  # the finished run there gives way
    assert run(out, text, "--seed", "1") == 2
    assert "unfinished run: --resume continues it, --overwrite starts again" in capsys.readouterr().err
    assert checkpoint.load(out / "xlstm")[1]["step"] == 3
    assert run(out, text, "--seed", "1", "--resume") == 0
    assert {checkpoint.load(out / name)[1]["settings"]["seed"] for name in train_lm.MODELS} == {1}


@pytest.mark.parametrize("damaged", [False, True])
def test_overwrite_starts_again(tmp_path, finished, text, damaged):
    out = shutil.copytree(finished, tmp_path / "run")
    if damaged:
        truncate(out / "xlstm" / "checkpoint.json")
    assert run(out, text, "--overwrite", "--seed", "1") == 0
    assert checkpoint.load(out / "xlstm")[1]["settings"]["seed"] == 1


class Bomb:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def edit(folder: Path, **changes) -> None:
    path = folder / checkpoint.JSON_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def tensor_file(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def replace_tensors(folder: Path, payload: bytes) -> None:
    tensor_file(folder).write_bytes(payload)
    edit(folder, tensors={"file": tensor_file(folder).name, "sha256": hashlib.sha256(payload).hexdigest()})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    payload = bytearray(path.read_bytes())
    payload[-1] ^= 1
    path.write_bytes(payload)


def drop_tensor(folder: Path, name: str) -> None:
    tensors = safetensors.torch.load(tensor_file(folder).read_bytes())
    del tensors[name]
    replace_tensors(folder, safetensors.torch.save(tensors))


def bomb(folder: Path) -> bytes:
    return pickle.dumps(Bomb(folder / "executed"))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "json missing": (lambda f: (f / "checkpoint.json").unlink(), "no checkpoint to resume"),
    "json truncated": (lambda f: truncate(f / "checkpoint.json"), "it is not JSON"),
    "json is a pickle": (lambda f: (f / "checkpoint.json").write_bytes(bomb(f)), "it is not JSON"),
    "json is a list": (lambda f: (f / "checkpoint.json").write_text("[1]"), "not a checkpoint of this example"),
    "foreign format": (lambda f: edit(f, format="other"), "not a checkpoint of this example"),
    "other version": (lambda f: edit(f, version=2), "has format version 2; this program reads version 1"),
    "no tensor entry": (lambda f: edit(f, tensors=None), "does not name its tensor file"),
    "path outside": (
        lambda f: edit(f, tensors={"file": "../x.safetensors", "sha256": ""}),
        "does not name its tensor file",
    ),
    "wrong sha256": (lambda f: edit(f, tensors={"file": tensor_file(f).name, "sha256": "0" * 64}), "is damaged"),
    "tensors missing": (lambda f: tensor_file(f).unlink(), "cannot read the tensor file"),
    "tensors truncated": (lambda f: truncate(tensor_file(f)), "is damaged"),
    "one bit flipped": (lambda f: flip_a_bit(tensor_file(f)), "is damaged"),
    "tensors are a pickle": (lambda f: replace_tensors(f, bomb(f)), "is not a safetensors file"),
    "moment missing": (lambda f: drop_tensor(f, "optimizer.exp_avg.lm_head.weight"), "does not fit this model"),
    "weight missing": (lambda f: drop_tensor(f, "model.lm_head.weight"), "does not fit this model"),
    "step disagrees": (lambda f: edit(f, step=5), "does not fit this model"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_checkpoint_gives_one_sentence(tmp_path, finished, text, capsys, case):
    damage, message = DAMAGE[case]
    out = shutil.copytree(finished, tmp_path / "run")
    damage(out / "xlstm")
    assert run(out, text, "--resume") == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error
    assert not (out / "xlstm" / "executed").exists()


def test_failed_write_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, {"x": torch.zeros(1)}, {"step": 1})
    rename = os.replace

    def full(source, target) -> None:
        if Path(target).name == checkpoint.JSON_NAME:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(checkpoint.CheckpointError, match="No space left on device"):
        checkpoint.save(tmp_path, {"x": torch.ones(1)}, {"step": 2})
    tensors, meta = checkpoint.load(tmp_path)
    assert (meta["step"], tensors["x"].item()) == (1, 0)
    monkeypatch.setattr(os, "replace", rename)
    checkpoint.save(tmp_path, {"x": torch.ones(1)}, {"step": 2})
    assert checkpoint.load(tmp_path)[0]["x"].item() == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.json", "step-00000002.safetensors"]


def test_data_errors(tmp_path, text, capsys, monkeypatch):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder" / ".hidden").mkdir(parents=True)
    (tmp_path / "folder" / ".hidden" / "file").write_text("not looked at")
    os.mkfifo(tmp_path / "pipe")
    for name, message in {
        "missing": "missing does not exist",
        "empty.txt": "the data has 0 bytes",
        "folder": "there are no files in the folder",
        "pipe": "pipe is not a file or folder",
    }.items():
        assert run(tmp_path / "out", tmp_path / name) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ")
        assert message in error
        assert "\n" not in error

    def denied(self) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert run(tmp_path / "out", text) == 2
    assert f"cannot read {text}: Permission denied" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unusable_output_folder(tmp_path, text, capsys):
    (tmp_path / "file").touch()
    assert run(tmp_path / "file", text) == 2
    assert capsys.readouterr().err.startswith(f"error: cannot make the folder {tmp_path / 'file'}: ")


@pytest.mark.parametrize(
    "option", ["--steps 0", "--seq-len x", "--lr nan", "--minutes -1", "--seed -1", "--dropout 1", "--slstm-at 2"]
)
def test_bad_options(tmp_path, text, option, capsys):
    with pytest.raises(SystemExit) as stop:
        run(tmp_path, text, *option.split())
    assert stop.value.code == 2
    assert option.split()[0].strip("-").replace("-", "_") in capsys.readouterr().err.replace("-", "_")


def test_smallest_usable_data(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"x" * 169)
    with pytest.raises(data.DataError, match="169 bytes; windows of 16 bytes need at least 170"):
        data.load_corpus([file], 16, 1000)
    file.write_bytes(b"x" * 170)
    corpus = data.load_corpus([file], 16, 1000)
    assert len(corpus.held_out) == 17
    assert len(list(data.held_out_batches(corpus, 10, 2, 16))) == 1


def test_held_out_bytes_are_never_trained_on(tmp_path):
    (tmp_path / "a").write_bytes(b"t" * 600)
    (tmp_path / "b").write_bytes(b"t" * 300 + b"h" * 100)
    corpus = data.load_corpus([tmp_path, tmp_path / "b"], 16, 10_000)  # b twice: used once
    assert corpus.files == 2
    assert (len(corpus.train), len(corpus.held_out)) == (900, 100)
    for step in range(50):
        inputs, targets = data.train_batch(corpus, step, 4, 16, seed=0)
        assert inputs.shape == targets.shape == (4, 16)
        assert (inputs == ord("t")).all()
        assert (targets == ord("t")).all()
    held_out = list(data.held_out_batches(corpus, 100, 4, 16))
    assert sum(len(inputs) for inputs, _ in held_out) == 6
    assert all((window == ord("h")).all() for batch in held_out for window in batch)


def test_windows(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(bytes(range(200)))
    corpus = data.load_corpus([file], 5, 1000)
    inputs, targets = data.train_batch(corpus, 3, 64, 5, seed=0)
    assert torch.equal(inputs + 1, targets)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    again, other_step, other_seed = (
        data.train_batch(corpus, s, 64, 5, seed)[0] for s, seed in [(3, 0), (4, 0), (3, 1)]
    )
    assert torch.equal(inputs, again)
    assert not torch.equal(inputs, other_step)
    assert not torch.equal(inputs, other_seed)
    short = data.Corpus(torch.arange(7, dtype=torch.uint8), corpus.held_out, 1, False, "")
    assert set(data.train_batch(short, 0, 64, 5, seed=0)[1][:, -1].tolist()) == {5, 6}
    starts = torch.cat([inputs[:, 0] for inputs, _ in data.held_out_batches(corpus, 2, 1, 5)])
    assert starts.tolist() == [180, 185]
    capped = data.load_corpus([file], 5, 100)
    assert capped.capped
    assert bytes(torch.cat([capped.train, capped.held_out]).tolist()) == bytes(range(100))


def test_standard_library_has_no_tests_or_packages():
    files = data.standard_library()
    assert {"argparse.py", "ast.py", "bisect.py"} <= {f.name for f in files}
    assert not any({"site-packages", "test", "tests"} & set(f.parts[-3:]) for f in files)
    assert files == sorted(files)


def test_bits_per_byte(text):
    assert training.bits_per_byte(3 * math.log(2)) == pytest.approx(3, rel=1e-15)
    corpus = data.load_corpus([text], 16, 10_000)
    settings = training.Settings(1, 2, 16, 1e-3, 0, False, "")
    model = LSTMLanguageModel(256, 4)
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    run = training.Run("lstm", model, {}, settings, torch.device("cpu"))
    assert training.evaluate(run, data.held_out_batches(corpus, 9, 2, 16)) == pytest.approx(8, rel=1e-6)
    with torch.no_grad():  # p(space) = 1/2, the rest shared: an uneven last batch must count by its size
        model.head.bias[ord(" ")] = math.log(255)
    held_out = list(data.held_out_batches(corpus, 9, 2, 16))
    assert len(held_out[-1][0]) == 1
    targets = torch.cat([t.flatten() for _, t in held_out])
    expected = (1 + (targets != ord(" ")) * math.log2(255)).mean().item()
    assert training.evaluate(run, held_out) == pytest.approx(expected, rel=1e-6)


def test_learning_rate():
    settings = training.Settings(100, 1, 1, 2.0, 0, False, "")
    rates = [training.learning_rate(step, settings) for step in range(100)]
    assert rates[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert rates[5] == 2.0
    assert all(a > b for a, b in itertools.pairwise(rates[5:]))
    assert 0.2 < rates[-1] < 0.202
    assert rates[52] == pytest.approx(1.1, abs=0.02)


@pytest.mark.parametrize("parameters", [30_000, 1_000_000, 2_000_000])
def test_baseline_has_the_same_size(parameters):
    with torch.device("meta"):
        model = matching_lstm(256, parameters)
    assert parameter_count(model) == lstm_parameters(256, model.lstm.hidden_size)
    assert abs(parameter_count(model) - parameters) < 0.05 * parameters


def test_report(tmp_path, text, finished, capsys):
    """What a run prints, and a plot with axes, curves and more than one colour."""
    assert run(shutil.copytree(finished, tmp_path / "run"), text, "--resume") == 0
    lines = capsys.readouterr().out.splitlines()
    sizes = {line.split()[0]: int(line.split()[1].replace(",", "")) for line in lines if line[:5] in ("xLSTM", "torch")}
    assert sizes["torch.nn.LSTM"] == pytest.approx(sizes["xLSTM"], rel=0.05)
    sample = "\n".join(lines[lines.index("sample:") + 1 :])
    assert sample.startswith("The ")
    assert 1 <= len(sample.removeprefix("The ")) <= 5
    assert all(c.isprintable() or c in "\n\t" for c in sample)
    image = matplotlib.image.imread(finished / "loss.png")
    height, width = image.shape[:2]
    assert width >= 600
    assert height >= 400
    colours = {tuple(pixel) for row in (image[::2, ::2, :3] * 255).astype(int) for pixel in row}
    assert any(r < 100 and b > 150 for r, g, b in colours), "no blue curve"
    assert any(r > 200 and 80 < g < 180 and b < 100 for r, g, b in colours), "no orange curve"
