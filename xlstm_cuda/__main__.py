"""python -m xlstm_cuda info"""

from __future__ import annotations

import argparse
import sys

from xlstm_cuda.info import info


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m xlstm_cuda")
    parser.add_argument("command", choices=["info"], help="info: what is installed and what it was built with")
    parser.parse_args()
    try:
        rows = info()
    except ImportError as error:
        sys.exit(str(error))
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    main()
