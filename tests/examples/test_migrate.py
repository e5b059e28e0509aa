"""docs/migrate.md: every program runs as printed, and what is called Before and After gives the same output."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.support.paths import ROOT
from tests.support.programs import missing_packages, run_programs
from xlstm_cuda.testing import assert_close_relative

GUIDE = ROOT / "docs" / "migrate.md"
BLOCK = re.compile(r"^(?:(Before|After):\n\n?)?```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SECONDS = 240  # for one that hangs
SAVE = "\nimport torch as _torch\n\n_torch.save(output, {path!r})\n"


class Example(NamedTuple):
    """Programs that leave the same tensor `output`, or one program."""

    name: str
    programs: list[str]


def examples(text: str) -> list[Example]:
    """In the order of the text. ValueError for a Before without an After, or the other way round."""
    found: list[Example] = []
    for section in re.split(r"^## ", text, flags=re.MULTILINE):
        title, before = section.partition("\n")[0], None
        for index, (label, source) in enumerate(BLOCK.findall(section)):
            if (before is None) == (label == "After"):
                raise ValueError(f"{title}, block {index}: Before and After must come in pairs")
            if label != "Before":
                found.append(Example(f"{title} {index}", [source] if before is None else [before, source]))
            before = source if label == "Before" else None
        if before is not None:
            raise ValueError(f"{title}: Before without After")
    return found


def check(example: Example, folder: Path) -> None:
    missing = missing_packages("\n".join(example.programs))
    if missing:
        pytest.skip(f"not installed: {', '.join(sorted(missing))}")
    files, results = [], []
    for index, source in enumerate(example.programs):
        results.append(folder / f"{index}.pt")
        files.append(folder / f"{index}.py")
        files[-1].write_text(source + (SAVE.format(path=str(results[-1])) if len(example.programs) == 2 else ""))
    run_programs(files, folder, SECONDS)
    if len(example.programs) == 2:
        before, after = (torch.load(path).detach() for path in results)
        assert before.numel() > 1 and before.unique().numel() > 1, "an output that shows nothing"
        assert_close_relative(after, before, 1e-5, "output")


GUIDE_EXAMPLES = examples(GUIDE.read_text())


def test_there_are_examples() -> None:
    titles = re.findall(r"^## (.*)$", GUIDE.read_text(), re.MULTILINE)
    assert {"torch.nn.LSTM", "TiRex"} <= set(titles)
    assert {example.name.rpartition(" ")[0] for example in GUIDE_EXAMPLES} == set(titles)
    assert any(len(example.programs) == 2 for example in GUIDE_EXAMPLES)


def test_contents() -> None:
    """Every link of the table of contents has its place."""
    text = GUIDE.read_text()
    links, places = re.findall(r"\]\(#([\w-]+)\)", text), re.findall(r'<a id="([\w-]+)"></a>', text)
    assert links and links == places


def parameter(example: Example) -> Any:
    """Programs that import half a dozen large packages run in make test-packages."""
    marks = [pytest.mark.slow] if example.name.startswith(("Fine-tuning", "Evaluation")) else []
    return pytest.param(example, marks=marks, id=example.name)


@pytest.mark.parametrize("example", [parameter(example) for example in GUIDE_EXAMPLES])
def test_example(example: Example, tmp_path: Path) -> None:
    check(example, tmp_path)


PAIR = "## Title\n\nBefore:\n\n```python\n{0}```\n\nAfter:\n\n```python\n{1}```\n"
TENSOR = "import torch\noutput = torch.arange(3.0)\n"


def test_wrong_guides_are_noticed(tmp_path: Path) -> None:
    (same,) = examples(PAIR.format(TENSOR, TENSOR))
    assert same.programs == [TENSOR] * 2
    (other,) = examples(PAIR.format(TENSOR, TENSOR + "output[1] += 1e-4\n"))
    with pytest.raises(AssertionError, match="output: relative error"):
        check(other, tmp_path)
    with pytest.raises(ValueError, match="Before without After"):
        examples(PAIR.format(TENSOR, TENSOR).replace("After:", "Afterwards:").partition("Afterwards")[0])
    with pytest.raises(ValueError, match="must come in pairs"):
        examples(PAIR.format(TENSOR, TENSOR).replace("After:", "Before:"))


def test_failing_programs_are_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="0.py ended with status 1:(\n.*)*ZeroDivisionError"):
        check(Example("failing", ["1 / 0\n"]), tmp_path)
