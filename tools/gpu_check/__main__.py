"""Command line. Exit status: 0 no part failed, 1 one did, 2 a mistake in the request or something missing here."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import summary
from .commands import Folder
from .machine import Machine, Missing, environment, look, require_gpu, require_nvcc
from .parts import PARTS
from .redaction import of_this_machine
from .runner import FAILED, Outcome, Part, run_parts

ROOT = Path(__file__).resolve().parents[2]
SUMMARY, READABLE = "summary.json", "summary.md"


def main(arguments: Sequence[str] | None = None, parts: Sequence[Part] = PARTS) -> int:
    args = _parser(parts).parse_args(arguments)
    chosen = [part for part in parts if part.name in args.parts]
    env = environment()
    try:
        if args.gpu or args.machine:
            require_gpu(env)
            if args.machine:
                require_nvcc(env)
            return 0
        machine = look([module for part in chosen for module in part.modules], env)
        folder = _emptied(args.out.absolute(), parts)
    except (Missing, _Foreign) as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2
    return check(chosen, machine, folder, env, args.commit)


def check(
    parts: Sequence[Part], machine: Machine, path: Path, env: Mapping[str, str], commit: str | None = None
) -> int:
    """Runs the parts and fills the folder; one line per part on stdout."""
    folder, origin = Folder(path, of_this_machine(ROOT)), summary.source(ROOT, commit)
    print(f"{machine.gpu['name']}, at most {sum(part.seconds for part in parts):g} s", flush=True)

    def report(outcomes: Sequence[Outcome]) -> None:
        last = outcomes[-1]
        found = last.reason or last.figures.get("found", "")
        print(f"{last.part:10} {last.status:8} {last.seconds:6.1f} s  {folder.redactor.text(str(found))}", flush=True)
        results = _results(path)
        record = folder.redactor.value(summary.summary(origin, machine, outcomes, results))
        folder.write_json(SUMMARY, record)
        folder.write(READABLE, summary.markdown(record, results))

    outcomes = run_parts(parts, machine, ROOT, folder, env, report)
    print(f"written: {path}")
    return 1 if any(outcome.status == FAILED for outcome in outcomes) else 0


def _results(folder: Path) -> summary.Results:
    file = folder / "bench.json"
    return json.loads(file.read_text()) if file.exists() else None


class _Foreign(Exception):
    """The folder holds what is not ours."""


def _emptied(path: Path, parts: Sequence[Part]) -> Path:
    """The folder, without the files of an earlier run: in the end all is of one commit and one machine."""
    ours = {SUMMARY, READABLE, "bench.json", *(part.log for part in parts)}
    foreign = sorted(file.name for file in path.iterdir() if file.name not in ours) if path.is_dir() else []
    if foreign:
        raise _Foreign(f"{path} holds {foreign[0]}, which is not of this check: name another folder with --out")
    path.mkdir(parents=True, exist_ok=True)
    for file in path.iterdir():
        file.unlink()
    return path


def _parser(parts: Sequence[Part]) -> argparse.ArgumentParser:
    names = [part.name for part in parts]

    def several(text: str) -> list[str]:
        unknown = [name for name in text.split(",") if name not in names]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown part {unknown[0]!r}: expected some of {','.join(names)}")
        return text.split(",")

    parser = argparse.ArgumentParser("python -m tools.gpu_check", description="Evidence from a GPU; docs/gpu-check.md.")
    parser.add_argument("--parts", type=several, default=names, help=f"some of {','.join(names)} (default: all)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu-check", help="folder to write")
    parser.add_argument("--commit", help="the commit's name, where this is not a git checkout")
    parser.add_argument("--machine", action="store_true", help="only look whether there are a GPU and nvcc")
    parser.add_argument("--gpu", action="store_true", help="only look whether there is a GPU")
    return parser


if __name__ == "__main__":
    sys.exit(main())
