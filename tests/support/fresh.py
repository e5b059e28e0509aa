"""Where the random numbers of tests begin, and pytest --repeat-fresh N: the tests that draw others each time, N times.

Imported by conftest.py: its names are hooks and fixtures of pytest.
"""

from __future__ import annotations

import random

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    help = "only the tests that draw other numbers each time (fresh_seed, hypothesis), each so many times"
    parser.addoption("--repeat-fresh", type=int, metavar="TIMES", help=help)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    times = metafunc.config.getoption("--repeat-fresh")
    if times and ("fresh_seed" in metafunc.fixturenames or hasattr(metafunc.function, "hypothesis")):
        metafunc.parametrize("global_generators", range(times), indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--repeat-fresh"):
        repeated = [item for item in items if "global_generators" in parameters(item)]
        config.hook.pytest_deselected(items=[item for item in items if "global_generators" not in parameters(item)])
        items[:] = repeated


def parameters(item: pytest.Item) -> dict[str, object]:
    return item.callspec.params if hasattr(item, "callspec") else {}


@pytest.fixture(autouse=True)
def global_generators() -> None:
    """A test draws the same whichever tests its process has run before."""
    torch.manual_seed(0)
    random.seed(0)


@pytest.fixture
def fresh_seed(global_generators: None) -> int:
    """Another seed each time, the global generators' too; shown where a test fails."""
    print("seed", seed := torch.seed())
    random.seed(seed)
    return seed
