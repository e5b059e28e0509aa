"""The speech experiment: WAV files and their features, packed recordings, the command line, what it refuses."""

from __future__ import annotations

import json
import math
import random
import struct
import sys
import wave
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from examples.lm.data import DataError
from examples.tasks.__main__ import main
from examples.tasks.speech import SpeechClassification, SpeechOptions
from examples.tasks.speech_data import FEWEST, Part, log_mel, mel_matrix, read_wav, wav_folder

pytestmark = pytest.mark.usefixtures("fresh_seed")

RATE = 2000
TINY = ["--steps", "2", "--batch-size", "4", "--dim", "8", "--heads", "2", "--rate", str(RATE), "--mels", "6"]
MODELS = ("sLSTM", "mLSTM", "LSTM", "Transformer")


def write_wav(file: Path, samples: list[int], rate: int = RATE, channels: int = 1, width: int = 2) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(file), "wb") as stream:
        stream.setparams((channels, width, rate, 0, "NONE", ""))
        stream.writeframes(b"".join(sample.to_bytes(width, "little", signed=width > 1) for sample in samples))
    return file


def tone(pitch: float, seconds: float, rng: random.Random) -> list[int]:
    phase, count = rng.random() * 6, int(seconds * RATE)
    return [int(9000 * math.sin(phase + 2 * math.pi * pitch * t / RATE) + rng.gauss(0, 500)) for t in range(count)]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes, low and high tones, of six files of different lengths."""
    rng = random.Random(random.random())
    for name, pitch in (("high", 700.0), ("low", 150.0)):
        for index in range(6):
            write_wav(tmp_path / "wav" / name / f"{index}.wav", tone(pitch, 0.05 + 0.15 * rng.random(), rng))
    return tmp_path / "wav"


@pytest.fixture
def task(folder) -> SpeechClassification:
    options = replace(SpeechOptions(), dim=8, heads=2, blocks=2, batch_size=4, rate=RATE, mels=6, wav=str(folder))
    return SpeechClassification(options, 0, torch.device("cpu"))


def test_read_wav_gives_the_samples(tmp_path):
    samples = [random.randint(-32768, 32767) for _ in range(50)]
    found = read_wav(write_wav(tmp_path / "a.wav", samples), RATE)
    assert found.tolist() == [sample / 32768 for sample in samples]


def test_mel_matrix_is_made_of_triangles():
    mels, rate = random.randint(2, 12), random.randint(1000, 20000)

    def mel(frequency: float) -> float:
        return 2595 * math.log10(1 + frequency / 700)

    corners = [700 * (10 ** (k * mel(rate / 2) / (mels + 1) / 2595) - 1) for k in range(mels + 2)]
    matrix = mel_matrix(mels, rate)
    for row, (low, peak, high) in zip(matrix, zip(corners, corners[1:], corners[2:], strict=False), strict=True):
        for bin_, value in enumerate(row.tolist()):
            frequency = bin_ * rate / 2 / (matrix.shape[1] - 1)
            inside = low < frequency < high
            way = (frequency - low) / (peak - low) if frequency < peak else (high - frequency) / (high - peak)
            assert value == pytest.approx(way if inside else 0, abs=1e-3)


def test_log_mel_is_the_power_of_the_windows():
    """By the definition of the Fourier transform, frame by frame."""
    rate, size, hop = 1000, 25, 10
    samples, matrix = torch.randn(random.randint(25, 90)), mel_matrix(4, rate)
    found = log_mel(samples, matrix, rate)
    starts = range(0, len(samples) - size + 1, hop)
    assert found.shape == (len(starts), 4)
    t, frequencies = torch.arange(size).double(), torch.arange(size // 2 + 1).double()
    window = torch.sin(math.pi * t / size) ** 2
    for frame, start in zip(found, starts, strict=True):
        angles = 2 * math.pi * frequencies[:, None] * t / size
        part = samples[start : start + size].double() * window
        power = (part * angles.cos()).sum(1) ** 2 + (part * angles.sin()).sum(1) ** 2
        torch.testing.assert_close(frame.double(), (matrix.double() @ power + 1e-6).log(), rtol=1e-3, atol=1e-3)


def test_a_recording_shorter_than_a_window_is_one_frame():
    assert log_mel(torch.randn(1), mel_matrix(6, RATE), RATE).shape == (1, 6)


def test_a_fifth_of_each_class_is_held_out_by_its_names(folder):
    data = wav_folder(folder, RATE, 6)
    assert data.classes == ("high", "low")
    assert sorted(data.train.labels.tolist()) == [0] * 5 + [1] * 5
    assert data.test.labels.tolist() == [0, 1]
    moved = wav_folder(folder.rename(folder.with_name("elsewhere")), RATE, 6)
    for one, other in zip(data.test.recordings, moved.test.recordings, strict=True):
        assert torch.equal(one, other)


def test_features_are_standardised_by_the_training_frames(folder):
    data = wav_folder(folder, RATE, 6)
    frames = torch.cat(data.train.recordings)
    torch.testing.assert_close(frames.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(frames.std(0, correction=0), torch.ones(6), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_padding_and_order_do_not_matter(task, name):
    """Every row of a batch gets what it gets alone, whatever is in the others."""
    torch.manual_seed(random.randrange(2**31))
    model = task.models()[name]().eval()
    lengths = random.sample(range(1, 20), 5)
    recordings = [torch.randn(n, 6) for n in lengths]

    def logits(rows: list[Tensor]) -> Tensor:
        return task._logits(model, Part(rows, torch.zeros(len(rows))))

    together = logits(recordings)
    for row, recording in zip(together, recordings, strict=True):
        torch.testing.assert_close(row, logits([recording])[0], rtol=1e-4, atol=1e-5)
    recordings[0] = 5 * torch.randn_like(recordings[0])
    changed = logits(recordings)
    assert not torch.allclose(changed[0], together[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(changed[1:], together[1:], rtol=1e-4, atol=1e-5)


def test_models_are_of_about_equal_size(task):
    task = SpeechClassification(replace(task.options, dim=64), 0, torch.device("cpu"))
    counts = [sum(p.numel() for p in build().parameters()) for build in task.models().values()]
    assert max(counts) < 1.15 * min(counts)


def test_the_loss_of_a_step_is_a_function_of_it(task):
    model = task.models()["sLSTM"]().eval()
    losses = [task.loss(model, step).item() for step in (3, 4, 3)]
    assert losses[0] == losses[2] != losses[1]


def test_verdict(task):
    def holds(**shares: float) -> bool:
        found = {"sLSTM": 0.9, "mLSTM": 0.9, "LSTM": 0.95, "majority": 0.5, **shares}
        return task.verdict({name: {"accuracy": share} for name, share in found.items()}).holds

    task.speech.test.recordings.extend([torch.zeros(1, 1)] * (100 - len(task.speech.test)))  # standard error: 0.03
    assert holds()
    assert not holds(LSTM=1.0, mLSTM=0.8)
    assert not holds(sLSTM=0.55, LSTM=0.5)


def finite(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def check_report(folder: Path) -> dict:
    found = json.loads((folder / "speech-seed0.json").read_text())
    assert finite(found)
    assert tuple(found["results"]) == (*MODELS, "majority")
    assert (folder / "speech-seed0.png").read_bytes().startswith(b"\x89PNG")
    return found


def test_command_line_with_wav_files(folder, tmp_path):
    out = tmp_path / "out"
    args = ["speech", *TINY, "--wav", str(folder), "--out", str(out)]
    assert main(args) == 0
    found = check_report(out)
    assert found["results"]["LSTM"]["test recordings"] == 2
    assert set(found["results"]["LSTM"]["by_class"]) == {"high", "low"}


def test_tones_are_told_apart(task):
    """Learning works at all: two pitches, a few steps."""
    torch.manual_seed(0)
    model = task.models()["sLSTM"]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for step in range(30):
        optimizer.zero_grad()
        task.loss(model, step).backward()
        optimizer.step()
    assert task.results(model.eval())["accuracy"] == 1
    assert task.score(model) > 0.9


def test_command_line_with_the_japanese_vowels(tmp_path):
    pytest.importorskip("sktime")
    assert main(["speech", *TINY, "--out", str(tmp_path)]) == 0
    found = check_report(tmp_path)
    assert found["results"]["sLSTM"]["test recordings"] == 370
    assert len(found["results"]["sLSTM"]["by_class"]) == 9


def test_sktime_is_asked_for_where_it_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sktime.datasets", None)
    refused(tmp_path, capsys, [], "package sktime: pip install 'xlstm-cuda[tasks]'")


def refused(tmp_path: Path, capsys, args: list[str], expected: str) -> None:
    out = tmp_path / "out"
    assert main(["speech", *TINY, *args, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not out.exists()


def one_of(folder: Path) -> Path:
    return folder / "low" / "3.wav"


def float_wav(file: Path) -> None:
    data = struct.pack("<4f", *[0.1] * 4)
    header = struct.pack("<HHIIHH", 3, 1, RATE, 4 * RATE, 4, 32)
    body = b"WAVE" + b"fmt " + struct.pack("<I", len(header)) + header + b"data" + struct.pack("<I", len(data)) + data
    file.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)


def remove_a_class(folder: Path) -> None:
    for file in (folder / "low").iterdir():
        file.rename(file.with_suffix(".txt"))


BAD = {
    "folder missing": (lambda folder: folder.rename(folder.with_name("gone")), "is not a folder"),
    "one class": (remove_a_class, "at least two classes"),
    "few files": (lambda folder: [file.unlink() for file in sorted((folder / "low").iterdir())[FEWEST - 1 :]], "needs"),
    "another rate": (lambda folder: write_wav(one_of(folder), [1] * 100, rate=8000), "has 8000 Hz"),
    "stereo": (lambda folder: write_wav(one_of(folder), [1] * 100, channels=2), "has 2 channels"),
    "8 bit": (lambda folder: write_wav(one_of(folder), [1] * 100, width=1), "has 8 bits"),
    "float": (lambda folder: float_wav(one_of(folder)), "cannot be read as a WAV file of PCM"),
    "no wav": (lambda folder: one_of(folder).write_text("this is text, no sound"), "cannot be read as a WAV file"),
    "no bytes": (lambda folder: one_of(folder).write_bytes(b""), "cannot be read as a WAV file"),
    "cut short": (lambda folder: one_of(folder).write_bytes(one_of(folder).read_bytes()[:-20]), "is cut short"),
    "cut header": (lambda folder: one_of(folder).write_bytes(one_of(folder).read_bytes()[:30]), "WAV file"),
    "empty audio": (lambda folder: write_wav(one_of(folder), []), "has no samples"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_recordings_are_refused(folder, tmp_path, capsys, kind):
    spoil, expected = BAD[kind]
    spoil(folder)
    refused(tmp_path, capsys, ["--wav", str(folder)], expected)


def test_options_that_do_not_fit_are_refused(folder, tmp_path, capsys):
    refused(tmp_path, capsys, ["--dim", "9"], "--dim must be a multiple of --heads 2, got 9")
    refused(tmp_path, capsys, ["--rate", "50"], "--rate must be at least 1000, got 50")


def test_errors_name_the_file(folder):
    write_wav(one_of(folder), [1] * 10, rate=44100)
    with pytest.raises(DataError, match=f"3.wav has 44100 Hz; one channel of 16-bit PCM at {RATE} Hz is expected"):
        wav_folder(folder, RATE, 6)
