"""python -m tools.ptx FILE.ptx --output FOLDER [--parts N]: one PTX file to N C++ files, FILE.0.cpp and so on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .cpp import files
from .parse import Module
from .types import Unsupported


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.ptx", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="folder of the C++ files")
    parser.add_argument("--parts", type=int, default=1, help="how many of them")
    options = parser.parse_args()
    try:
        texts = files(Module(options.file.read_text()), options.file.name, options.parts)
    except (Unsupported, OSError, UnicodeDecodeError) as error:
        print(f"{options.file}: {error}", file=sys.stderr)
        return 1
    options.output.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts):
        (options.output / f"{options.file.stem}.{number}.cpp").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
