"""Pages, workflows and sources name nothing that is not there: files and make targets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md")])
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
CODE = re.compile(r"^```sh\n(.*?)^```|`(make [^`\n]+)`", re.MULTILINE | re.DOTALL)
FOLDERS = ("bench", "csrc", "examples", "tests/support", "tests/tools", "tools", "xlstm_cuda")
ENDINGS = {".py", ".h", ".cpp", ".cu", ".sh"}
SOURCES = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*") if file.suffix in ENDINGS]
PATH = re.compile(
    r"(?<![\w/.])(?:bench|csrc|docs|examples|tests|tools|xlstm_cuda)/[\w/.-]+\.(?:h|cpp|cu|py|md|sh|json)\b"
)
TARGET = re.compile(r"\bmake ([a-z][a-z-]*)")


def targets() -> set[str]:
    rules = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return set(rules)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    assert not [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_pages_name_targets_that_exist(page: Path) -> None:
    code = "\n".join(fence or inline for fence, inline in CODE.findall(page.read_text()))
    assert set(TARGET.findall(code)) <= targets()


@pytest.mark.parametrize("workflow", [*WORKFLOWS, ROOT / ".ci" / "run"], ids=name)
def test_workflows_call_targets_that_exist(workflow: Path) -> None:
    called = set(TARGET.findall(re.sub("#.*", "", workflow.read_text())))
    assert called and called <= targets()


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=name)
def test_workflows_repeat_no_list(workflow: Path) -> None:
    """Of architectures, which `make gate-archs` prints, and of packages, which tools/packages.py prints."""
    (archs,) = re.findall(r"^GATE_ARCHS := (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    text = workflow.read_text()
    assert ";".join(archs.split()) not in text and "hypothesis" not in text


@pytest.mark.parametrize("file", [*WORKFLOWS, ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"], ids=name)
def test_yaml_is_valid(file: Path) -> None:
    yaml = pytest.importorskip("yaml")
    assert isinstance(yaml.safe_load(file.read_text()), dict)


def test_a_usual_change_touches_nine_files_at_most() -> None:
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## The usual changes")[2].partition("### A kernel")[0]
    changes = re.split(r"^### ", section, flags=re.MULTILINE)[1:]
    assert len(changes) == 6
    for change in changes:
        listed = "\n".join(re.findall(r"^- .*(?:\n  .*)*", change, re.MULTILINE))
        files = re.findall(r"`((?:\w+/)+[\w.]+|Makefile|CHANGELOG.md)`", listed)
        assert 0 < len(files) <= 9, change
        assert not [file for file in files if "NAME" not in file and not (ROOT / file).is_file()], change


def test_sources_name_files_that_exist() -> None:
    named = {(path, name(file)) for file in SOURCES for path in PATH.findall(file.read_text())}
    assert len(named) > 20
    assert not [(path, file) for path, file in named if not (ROOT / path).exists()]


def test_the_pages_are_found() -> None:
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docs/migrate.md"} <= {*map(name, PAGES)}
    assert {"test", "lint", "gates", "simt"} <= targets()
