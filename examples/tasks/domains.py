"""One language model for several domains of text: loss in each."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
from matplotlib.axes import Axes
from torch import nn

from ..lm.data import Corpus, DataError, find_files, load_corpus, standard_library
from ..lm.options import text
from .language import FULL, LSTM_LAYERS, Language, LanguageOptions
from .models import LSTM, Transformer, xlstm
from .task import Models, Options, Results, Verdict, option

OURS, OTHERS = "xLSTM[1:0]", ("Transformer", "LSTM")
MOST = 0.8  # share of the domains; in the paper it is 0.85 against a Transformer


@dataclass(frozen=True)
class DomainsOptions(LanguageOptions):
    steps: int = option(500, "training steps of each model")
    dim: int = option(48, "embedding dimension of the xLSTM; the other models have as many parameters")
    data: tuple[str, ...] = option((), "files or folders, each a domain; texts of installed packages if none", text)
    max_bytes: int = option(1_000_000, "a domain ends there")
    batch_size: int = option(3, "windows of each domain in a batch")
    eval_windows: int = option(96, "held-out windows of each domain")


class Domains(Language):
    name = "domains"
    title = "Loss in several domains"
    claim = (
        "Trained on a mixture, xLSTM[1:0] has a lower loss than a Transformer in most domains of text (PALOMA, "
        "arXiv 2405.04517, section 4.3)."
    )
    setting = (
        "Bytes of files that are on the machine: Python, C++ headers, package descriptions, translated messages, "
        "JavaScript, tables. A batch has as many of each. Few steps on little text. Held out is the end of each "
        "domain. In some domains, translated messages above all, it repeats lines of what comes before. The LSTM has "
        f"one layer. Most: {MOST:.0%} of the domains."
    )
    defaults: ClassVar[Options] = DomainsOptions()
    full: ClassVar[Options] = replace(DomainsOptions(), **FULL, max_bytes=32_000_000, batch_size=8)
    options: DomainsOptions

    def load(self) -> dict[str, Corpus]:
        options = self.options
        given = [find_files([Path(path)]) for path in options.data]
        if len(set().union(*given)) < sum(map(len, given)):
            raise ValueError("--data names a file twice")
        files = dict(zip(options.data, given, strict=True)) or installed()
        corpora = {}
        for name, paths in files.items():
            try:
                corpora[name] = load_corpus(paths, options.seq_len, options.max_bytes)
            except DataError as error:
                raise DataError(f"domain {name}: {error}") from None
        return corpora

    def models(self) -> Models:
        blocks, heads = self.options.blocks, self.options.heads
        backbones: dict[str, Callable[[int], nn.Module]] = {
            OURS: lambda dim: xlstm("1:0", dim, blocks, heads),
            "LSTM": lambda dim: LSTM(dim, LSTM_LAYERS),
            "Transformer": lambda dim: Transformer(dim, blocks, heads),
        }
        return self.sized(backbones, OURS, self.options.dim)

    def results(self, model: nn.Module) -> Results:
        """Held-out bits per byte in each domain."""
        return {bits_in(name): self.held_out(model, corpus) for name, corpus in self.corpora.items()}

    def verdict(self, results: Mapping[str, Results]) -> Verdict:
        keys = [bits_in(name) for name in self.corpora]
        better = {other: sum(results[OURS][key] < results[other][key] for key in keys) for other in OTHERS}
        counts = ", ".join(f"than the {other} in {count}" for other, count in better.items())
        return Verdict(better["Transformer"] >= MOST * len(keys), f"of {len(keys)} domains {OURS} is better {counts}")

    def plot(self, axes: Axes, results: Mapping[str, Results]) -> None:
        places, width = np.arange(len(self.corpora)), 0.8 / len(results)
        for shift, (name, result) in enumerate(results.items()):
            bits = [result[bits_in(domain)] for domain in self.corpora]
            axes.bar(places + (shift - (len(results) - 1) / 2) * width, bits, width, label=name)
        axes.set_xticks(places, [Path(domain).name for domain in self.corpora])
        axes.set_ylabel("held-out bits per byte")
        axes.legend()


def bits_in(domain: str) -> str:
    """Key of the results."""
    return f"bits/byte {domain}"


def installed() -> dict[str, list[Path]]:
    """Files of installed software, by domain, sorted."""
    languages = ("de", "es", "fr")
    scripts = [path for path in package("django").rglob("static/**/*.js") if not path.name.endswith(".min.js")]
    messages = [path for path in package("django").rglob("*.po") if path.parts[-3] in languages]
    found = {
        "Python": standard_library(),
        "C++": package("torch").glob("include/**/*.h"),
        "English": Path(sysconfig.get_paths()["purelib"]).glob("*.dist-info/METADATA"),
        "translations": messages,
        "JavaScript": scripts,
        "tables": package("statsmodels").glob("datasets/*/*.csv"),
    }
    domains = {name: sorted(files) for name, files in found.items()}
    for name, files in domains.items():
        if not files:
            raise DataError(f"domain {name}: no installed package has files for it; --data takes your own")
    return domains


def package(name: str) -> Path:
    """Its folder, found without importing it."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise DataError(
            f"the default domains need the package {name}: pip install 'xlstm-cuda[tasks]' (or give --data)"
        )
    return Path(spec.origin).parent
