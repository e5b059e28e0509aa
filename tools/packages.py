"""The packages of extras in pyproject.toml, one a line, for pip's -r: python tools/packages.py test lint

"build" is what building needs. pip install -e '.[test]' would name them too, and build the extension anew.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def packages(names: Iterable[str], pyproject: dict[str, Any]) -> Iterator[str]:
    """Requirements of these extras, and of those that they name as name-of-this-project[extra]."""
    project = pyproject["project"]
    extras = {"build": pyproject["build-system"]["requires"], **project["optional-dependencies"]}
    for name in names:
        for requirement in extras[name]:
            if requirement.startswith(f"{project['name']}["):
                yield from packages(requirement.partition("[")[2].rstrip("]").split(","), pyproject)
            else:
                yield requirement


if __name__ == "__main__":
    print(*packages(sys.argv[1:], tomllib.loads(PYPROJECT.read_text())), sep="\n")
