"""python -m xlstm_cuda info | convert | --version"""

from __future__ import annotations

import argparse
import sys

from xlstm_cuda.info import __version__, info


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m xlstm_cuda")
    parser.add_argument("--version", action="version", version=f"xlstm_cuda {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="what is installed and what it was built with").set_defaults(run=_info)
    _add_convert(commands.add_parser("convert", help="a checkpoint of xLSTMLarge (xLSTM 7B) to another layout"))
    arguments = parser.parse_args()
    try:
        arguments.run(arguments)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)  # as shells say it


def _info(arguments: argparse.Namespace) -> None:
    rows = info()
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")


def _add_convert(parser: argparse.ArgumentParser) -> None:
    from xlstm_cuda.interop.checkpoints.layouts import LAYOUTS

    models = ", ".join(f"{name} ({layout.model})" for name, layout in LAYOUTS.items())
    add = parser.add_argument
    add(
        "source",
        help="folder with config and weights, or one file of weights beside its config",
    )
    add("target", help="folder to write")
    add("--to", required=True, help=models)
    add("--weights", default="single", help="single or fused: parallel linear maps in one tensor (%(default)s)")
    add("--dtype", help="float32, bfloat16, float16 or float64; as in the source unless given")
    add("--shard-size", default="5GB", help="most bytes of a file (%(default)s)")
    add("--overwrite", action="store_true", help="replace the target if it is the folder of a checkpoint")
    parser.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> None:
    from xlstm_cuda.interop.checkpoints import convert

    options = {name: value for name, value in vars(arguments).items() if name not in ("command", "run")}
    done = convert(**options, progress=True)
    print(
        f"{done.source_layout} ({done.source_weights}) -> {arguments.to} ({done.weights}): "
        f"{done.tensors} tensors, {done.nbytes:,} bytes, {done.files} files in {arguments.target}"
    )


if __name__ == "__main__":
    main()
