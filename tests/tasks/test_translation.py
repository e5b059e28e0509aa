"""The translation experiment: catalogues, the state handed over, searches, the command line, what it refuses."""

from __future__ import annotations

import json
import math
import random
import string
import struct
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("sacrebleu")

from examples.tasks.__main__ import main
from examples.tasks.gettext_pairs import FEWEST, Pair, Pairs, load_pairs, read_catalogue, split
from examples.tasks.translation import COPY, END, START, Translation, TranslationOptions, by_length, joined

pytestmark = pytest.mark.usefixtures("fresh_seed")

TINY = ["--steps", "2", "--batch-size", "4", "--dim", "8", "--heads", "2", "--beams", "2", "--ratio", "1:1"]
MODELS = ("xLSTM[1:1]", "LSTM")
HEADER = "Content-Type: text/plain; charset={}\nPlural-Forms: nplurals=2; plural=({});\n"


def mo(messages: Mapping[str, str], charset: str = "UTF-8", encoding: str = "utf-8", plural: str = "n != 1") -> bytes:
    """A compiled catalogue. Plural forms: 'one NUL many' to 'eins NUL viele'; contexts: 'context EOT message'."""
    entries = sorted((key.encode(encoding), text.encode(encoding)) for key, text in messages.items())
    entries.insert(0, (b"", HEADER.format(charset, plural).encode()))
    tables, texts = ([], []), b""
    start = 28 + 16 * len(entries)
    for column, table in enumerate(tables):
        for entry in entries:
            table.append(struct.pack("<2I", len(entry[column]), start + len(texts)))
            texts += entry[column] + b"\x00"
    header = struct.pack("<7I", 0x950412DE, 0, len(entries), 28, 28 + 8 * len(entries), 0, 0)
    return header + b"".join(tables[0]) + b"".join(tables[1]) + texts


def words(count: int) -> dict[str, str]:
    """Messages and translations, all of them different."""
    found: dict[str, str] = {}
    while len(found) < count:
        word = "".join(random.choices(string.ascii_lowercase, k=random.randint(2, 8)))
        found[word] = word[::-1] + "ä"
    return found


@pytest.fixture
def catalogue(tmp_path) -> Path:
    file = tmp_path / "de.mo"
    file.write_bytes(mo(words(30)))
    return file


@pytest.fixture
def task(catalogue) -> Translation:
    options = replace(TranslationOptions(), dim=8, ratio="1:1", heads=2, batch_size=4, beams=3, mo=(str(catalogue),))
    return Translation(options, 0, torch.device("cpu"))


def test_all_messages_are_read(tmp_path):
    messages = words(10)
    plain = {f" {key}\n": text + "\n" for key, text in messages.items()}
    other = {"day\x00days": "Tag\x00Tage", "menu\x04Open": "Öffnen", "menu\x04hour\x00hours": "Stunde\x00Stunden"}
    file = tmp_path / "a.mo"
    file.write_bytes(mo({**plain, **other}))
    expected = {*messages.items(), ("day", "Tag"), ("Open", "Öffnen"), ("hour", "Stunde")}
    assert {tuple(pair) for pair in read_catalogue(file)} == expected
    assert len(list(read_catalogue(file))) == len(expected)


def test_other_charsets_are_read(tmp_path):
    file = tmp_path / "a.mo"
    file.write_bytes(mo({"Open": "Öffnen"}, "ISO-8859-1", "latin-1"))
    assert list(read_catalogue(file)) == [Pair("Open", "Öffnen")]


def test_pairs_are_unique_and_short(tmp_path):
    first, second = words(60), words(60)
    twice = next(key for key in first if len(key) < 7)
    for name, messages in (("a.mo", first), ("b.mo", second)):
        others = {f"menu\x04{twice}": "again", "same": "same"}
        (tmp_path / name).write_bytes(mo({**messages, **others}))
    found = load_pairs([tmp_path / "a.mo", tmp_path / "b.mo"], 7)
    pairs = found.train + found.test
    sources = [pair.source for pair in pairs]
    assert len(sources) == len(set(sources))
    short = {key for key, text in {**second, **first}.items() if len(key) <= 7 and len(text) <= 7}
    assert set(sources) == short
    for pair in pairs:
        assert pair.target in (first.get(pair.source), second.get(pair.source), "again")


def test_a_tenth_is_held_out_whatever_the_order():
    pairs = [Pair(*item) for item in words(random.randint(20, 90)).items()]
    found = split(pairs)
    assert len(found.test) == len(pairs) // 10
    assert not {pair.source for pair in found.test} & {pair.source for pair in found.train}
    assert sorted(found.train + found.test) == sorted(pairs)
    assert split(reversed(pairs)) == found == split(random.sample(pairs, len(pairs)))
    assert split([Pair(pair.source, "") for pair in pairs]) == Pairs(
        [Pair(pair.source, "") for pair in found.train], [Pair(pair.source, "") for pair in found.test]
    )


def test_groups_hold_all_pairs_by_length():
    pairs = [Pair(*item) for item in words(random.randint(1, 70)).items()]
    groups = by_length(pairs, 16)
    assert sorted(sum(groups, [])) == sorted(pairs)
    assert max(map(len, groups)) <= 24
    lengths = [[len(pair.source + pair.target) for pair in group] for group in groups]
    assert all(max(shorter) <= min(longer) for shorter, longer in zip(lengths, lengths[1:], strict=False))


def test_plural_forms_that_do_not_exist_are_left_out(tmp_path):
    file = tmp_path / "a.mo"
    file.write_bytes(mo({"day": "Tag", "menu\x04hour\x00hours": "Stunde\x00Stunden"}, plural="5"))
    assert [tuple(pair) for pair in read_catalogue(file) if pair.target] == [("day", "Tag")]


def test_verdict(task):
    def holds(ours: float, greedy: float, lstm: float, copy: float) -> bool:
        scores = {"xLSTM[1:1]": (ours, greedy), "LSTM": (lstm, lstm), COPY: (copy, copy)}
        return task.verdict({name: {"chrF": a, "chrF greedy": b} for name, (a, b) in scores.items()}).holds

    assert holds(30, 29, 20, 25)
    assert holds(30, 30.9, 30.9, 25)
    assert not holds(30, 29, 20, 30.1)
    assert not holds(30, 31.1, 20, 25)
    assert not holds(30, 29, 31.1, 25)


def test_batches_hold_pairs_and_joined_pairs(task, monkeypatch):
    found: list[Pair] = []
    monkeypatch.setattr(task, "_loss", lambda model, pairs: found.extend(pairs))
    model = torch.nn.Identity()
    for step in range(50):
        task.loss(model, step)
    both = {joined(one, other) for one in task.train for other in task.train}
    single = [pair for pair in found if pair in task.train]
    assert set(found) - set(single) <= both
    assert 0.3 < len(single) / len(found) < 0.7
    assert joined(Pair("a b", "c"), Pair("d", "e")) == Pair("a b d", "c e")


@pytest.mark.parametrize("name", MODELS)
def test_padding_does_not_matter(task, name):
    """The loss of a batch is that of its pairs alone, weighted by their bytes."""
    torch.manual_seed(random.randrange(2**31))
    model = task.models()[name]().eval()
    pairs = random.sample(task.train, 5)
    sizes = [len(pair.target.encode()) + 1 for pair in pairs]
    alone = sum(task._loss(model, [pair]) * size for pair, size in zip(pairs, sizes, strict=True)) / sum(sizes)
    torch.testing.assert_close(task._loss(model, pairs), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_that_of_every_byte_after_those_before_it(task, name):
    model = task.models()[name]().eval()
    pair = task.train[0]
    target = [START, *pair.target.encode(), END]
    total = 0.0
    for t in range(1, len(target)):
        logits = model([task._ids(pair.source)], torch.tensor([target[:t]]))
        total -= logits[0, -1].log_softmax(0)[target[t]].item() / (len(target) - 1)
    assert task._loss(model, [pair]).item() == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_the_decoder_sees_the_source_in_the_state(task, name):
    model = task.models()[name]().eval()
    ids = torch.full((1, 1), START)
    one, other, same = (model([task._ids(text)], ids) for text in ("abc", "xbc", "abc"))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_greedy_search_takes_the_most_likely_byte(task, name):
    """Against the whole target so far through the model, byte by byte."""
    torch.manual_seed(random.randrange(2**31))
    model = task.models()[name]().double().eval()  # no two logits are as near as its rounding
    sources = [task._ids(pair.source) for pair in task.train[:3]]
    found = model.translate(sources, 6, 1)
    for source, row in zip(sources, found, strict=True):
        ids = torch.tensor([[START]])
        while ids.shape[1] <= found.shape[1] and END not in ids:
            ids = torch.cat([ids, model([source], ids)[:, -1:].argmax(-1)], 1)
        assert row.tolist()[: ids.shape[1] - 1] == ids[0, 1:].tolist()


@pytest.mark.parametrize("name", MODELS)
def test_beam_search_scores_by_the_model(task, name):
    """As many beams as bytes, two bytes at most: beam search is exhaustive. Sharp logits, so that sums differ."""
    torch.manual_seed(random.randrange(2**31))
    model = task.models()[name]().double().eval()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(3)
    source = task._ids(task.train[0].source)
    found = model.translate([source], 2, 256)[0].tolist()
    ids = torch.cat([torch.full((256, 1), START), torch.arange(256)[:, None]], 1)
    log_probs = model([source] * 256, ids).double().log_softmax(-1)
    both = (log_probs[0, 0, :, None] + log_probs[:, 1]) / 2
    both[END] = -math.inf
    first = log_probs[0, 0, END]
    best = both.flatten().argmax().item()
    expected = [END] if first > both.max() else [best // 256, best % 256]
    assert found[: len(expected)] == expected


def test_results_are_those_of_the_translations(task, monkeypatch):
    """A model that translates perfectly has 100, one that copies has what the baseline has."""
    model = task.models()["LSTM"]()
    answers = {pair.source: pair.target for pair in task.train + task.test}

    def translate(sources, max_new_tokens, num_beams):
        texts = [bytes(source.tolist()).decode() for source in sources]
        ids = [task._ids(answers[text] if num_beams > 1 else text).tolist() for text in texts]
        longest = max(map(len, ids)) + 1
        return torch.tensor([row + [END] * (longest - len(row)) for row in ids])

    monkeypatch.setattr(model, "translate", translate)
    found = task.results(model)
    assert found["chrF"] == found["chrF training pairs"] == 100
    assert found["chrF greedy"] == task.baselines()[COPY]["chrF"] < 100
    assert found["examples"][0] == [*task.test[0], task.test[0].target]


def test_the_loss_of_a_step_is_a_function_of_it(task):
    model = task.models()["xLSTM[1:1]"]().eval()
    losses = [task.loss(model, step).item() for step in (3, 4, 3)]
    assert losses[0] == losses[2] != losses[1]


def test_models_are_of_about_equal_size(task):
    task = Translation(replace(task.options, dim=64), 0, torch.device("cpu"))
    counts = [sum(p.numel() for p in build().parameters()) for build in task.models().values()]
    assert max(counts) < 1.15 * min(counts)


def check_report(folder: Path) -> dict:
    found = json.loads((folder / "translation-seed0.json").read_text())
    assert tuple(found["results"]) == (*MODELS, COPY)
    numbers = [
        value for result in found["results"].values() for value in result.values() if not isinstance(value, list)
    ]
    assert all(map(math.isfinite, numbers))
    assert (folder / "translation-seed0.png").read_bytes().startswith(b"\x89PNG")
    return found


def test_command_line_with_catalogues(catalogue, tmp_path):
    out = tmp_path / "out"
    assert main(["translation", *TINY, "--mo", str(catalogue), str(catalogue), "--out", str(out)]) == 0
    assert check_report(out)["results"]["LSTM"]["held-out pairs"] == 3


def test_command_line_with_the_catalogues_of_django(tmp_path):
    pytest.importorskip("django")
    assert main(["translation", *TINY, "--max-length", "8", "--language", "fr", "--out", str(tmp_path)]) == 0
    check_report(tmp_path)


def refused(tmp_path: Path, capsys, args: list[str], expected: str) -> None:
    out = tmp_path / "out"
    assert main(["translation", *TINY, *args, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not out.exists()


BAD = {
    "missing": (lambda file: file.unlink(), "No such file or directory"),
    "a folder": (lambda file: (file.unlink(), file.mkdir()), "Is a directory"),
    "text": (lambda file: file.write_text("msgid and msgstr in a .po file"), "Bad magic number"),
    "no bytes": (lambda file: file.write_bytes(b""), "it is cut short"),
    "header only": (lambda file: file.write_bytes(file.read_bytes()[:10]), "it is cut short"),
    "cut short": (lambda file: file.write_bytes(file.read_bytes()[:-40]), "File is corrupt"),
    "unknown charset": (lambda file: file.write_bytes(mo(words(30), "klingon")), "unknown encoding: klingon"),
    "another charset": (lambda file: file.write_bytes(mo(words(30), "utf-8", "latin-1")), "can't decode byte"),
    "no charset": (
        lambda file: file.write_bytes(mo(words(30)).replace(b"charset=", b"letters=")),
        "its header is malformed",
    ),
    "plural forms": (
        lambda file: file.write_bytes(mo({"hour\x00hours": "Stunde\x00Stunden"}, plural="n / 0")),
        "the formula of its plural forms fails",
    ),
    "few pairs": (lambda file: file.write_bytes(mo(words(FEWEST - 1))), f"de.mo: {FEWEST - 1} pairs of at most"),
    "no pairs": (lambda file: file.write_bytes(mo({})), "de.mo: 0 pairs of at most"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_catalogues_are_refused(catalogue, tmp_path, capsys, kind):
    spoil, expected = BAD[kind]
    spoil(catalogue)
    refused(tmp_path, capsys, ["--mo", str(catalogue)], expected)


def test_pairs_of_usable_length_are_needed(catalogue, tmp_path, capsys):
    refused(tmp_path, capsys, ["--mo", str(catalogue), "--max-length", "1"], "0 pairs of at most 1 characters")


def test_sizes_that_do_not_fit_are_refused(catalogue, tmp_path, capsys):
    refused(tmp_path, capsys, ["--mo", str(catalogue), "--dim", "9"], "--dim must be a multiple of --heads 2, got 9")
    refused(tmp_path, capsys, ["--mo", str(catalogue), "--blocks", "3"], "num_blocks must be a multiple of 2, got 3")


def test_packages_are_asked_for_where_they_are_missing(tmp_path, monkeypatch, capsys):
    pytest.importorskip("django")
    refused(tmp_path, capsys, ["--language", "nowhere"], "no catalogues of the language 'nowhere'")
    monkeypatch.setattr("examples.tasks.gettext_pairs.find_spec", lambda name: None)
    refused(tmp_path, capsys, [], "package django: pip install 'xlstm-cuda[tasks]'")
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    refused(tmp_path, capsys, [], "package sacrebleu: pip install 'xlstm-cuda[tasks]'")
