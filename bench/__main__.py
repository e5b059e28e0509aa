"""Command line. Exit status: 0 fine, 1 a wrong result of ours or a regression, 2 a mistake in the request."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from xlstm_cuda import _ops

from . import accuracy, counters, files, goals, kernels, machine_code, predict, shares
from .cases import DTYPES, SUITES, Case, UsageError, known, make_case
from .check import copies, runner
from .compare import compare, differences
from .cuda import without_cuda
from .ops import OPS
from .report import insert, markdown, plot
from .runner import Options, choose, run, wrong


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        return int(args.command(args))
    except UsageError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("python -m bench", description="Benchmarks; see docs/benchmarks.md.")
    commands = top.add_subparsers(
        required=True, metavar="run|shares|compare|report|kernels|counters|sass|predict|accuracy|goals"
    )

    p = commands.add_parser("run", help="check and time implementations")
    p.set_defaults(command=run_command, name="run")
    p.add_argument("--suite", help=f"lists of cases, separated by commas: {', '.join(SUITES)}")
    _add_case_options(p)
    p.add_argument("--threads", type=_positive, default=torch.get_num_threads())
    p.add_argument("--repeats", type=_positive, default=30, help="samples of each implementation")
    p.add_argument("--max-seconds", type=float, default=30.0, help="stop sampling a case after this long")
    p.add_argument("--check", action=argparse.BooleanOptionalAction, default=True, help="compare with float64 first")
    p.add_argument("--memory", action="store_true", help="also peak memory, each in a process of its own")
    p.add_argument("--json", type=Path, help="write the results there")

    p = commands.add_parser("shares", help="where the time of one case goes, by kind of work")
    p.set_defaults(command=shares_command, name="shares")
    _add_case_options(p)
    p.add_argument("--threads", type=_positive, default=torch.get_num_threads())

    p = commands.add_parser("compare", help="times of two result files; exit status 1 if anything became slower")
    p.set_defaults(command=compare_command)
    p.add_argument("old", type=Path)
    p.add_argument("new", type=Path)
    p.add_argument("--band", type=float, default=0.05, help="relative difference that counts as the same")

    p = commands.add_parser("report", help="a result file as a Markdown table and a plot")
    p.set_defaults(command=report_command)
    p.add_argument("file", type=Path)
    p.add_argument("--readme", type=Path, help="put the table between the bench markers of this file")
    p.add_argument("--png", type=Path, metavar="DIR", help="draw FILE.png in this folder")

    p = commands.add_parser("kernels", help="device time of every kernel of the calls of the suites for a GPU")
    p.set_defaults(command=kernels_command)

    p = commands.add_parser("counters", help="what the CUDA kernels execute, counted without a device (make ptx)")
    p.set_defaults(command=counters_command)
    _add_table_options(p, "a count", counters.FILE)

    p = commands.add_parser("sass", help="the machine code of the CUDA kernels, and a model of its time (make sass)")
    p.set_defaults(command=sass_command)
    _add_table_options(p, "a loop", machine_code.FILE)
    arch = machine_code.ARCH
    p.add_argument(
        "--arch", choices=list(machine_code.DEVICES), default=arch, help=f"the table is of {arch}, the default"
    )

    p = commands.add_parser("predict", help="times of the CUDA kernels on an H200, by a model (make ptx)")
    p.set_defaults(command=predict_command)
    p.add_argument("--heads", type=_positive, help="only the mLSTM with so many heads: 64, 16 or 8")
    p.add_argument("--seqlen", type=_positive, default=8192, help="tokens of a sequence (default: 8192)")
    p.add_argument("--kernels", action="store_true", help="also what each kernel takes, and what limits it")

    p = commands.add_parser("accuracy", help="errors of the recurrent CUDA kernels in 16 bits (make ptx)")
    p.set_defaults(command=accuracy_command)
    p.add_argument("--tokens", type=_positive, default=2048)

    p = commands.add_parser("goals", help="which of the library's goals result files show to be met")
    p.set_defaults(command=goals_command)
    p.add_argument("--device", choices=list(goals.GOALS), default="cpu", help="the goals on a CPU or on a GPU")
    p.add_argument("files", type=Path, nargs="+", metavar="FILE")
    return top


def _add_case_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--op", help=f"one case: {', '.join(OPS)}")
    p.add_argument("--impl", help="implementations, separated by commas (default: all that can run it)")
    p.add_argument("--shape", help="B=..,H=..,S=..,Dqk=..,Dv=.. (mlstm), B=..,S=..,H=..,D=.. (slstm, lstm), and so on")
    p.add_argument("--dtype", help="float32 (default), float64, bfloat16 or float16")
    p.add_argument("--mode", help="fwd or fwdbwd (default) for sequences, step for steps")
    p.add_argument("--device", help="cpu (default) or cuda")


def _add_table_options(p: argparse.ArgumentParser, compared: str, table: Path) -> None:
    p.add_argument("--case", default="", help="only the cases with this in their name")
    action = p.add_mutually_exclusive_group()
    action.add_argument(
        "--check", action="store_true", help=f"exit status 1 where {compared} is worse than the table's"
    )
    action.add_argument("--write", action="store_true", help=f"replace the table, bench/{table.name}")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return int(text)


def run_command(args: argparse.Namespace) -> int:
    options = Options(args.threads, args.repeats, args.check, args.memory, args.max_seconds)
    keep = None if args.json is None else partial(files.write, args.json)
    results = run(_cases(args), options, strict=args.suite is None, keep=keep)
    print(markdown(results), end="")
    for record in results["cases"]:
        for name, reason in record["skipped"].items():
            print(f"skipped: {files.title(record)}: {name} {reason}", file=sys.stderr)
    mistakes = wrong(results)
    for line in mistakes:
        print(f"wrong: {line}", file=sys.stderr)
    for line in wrong(results, peers=True):
        print(f"wrong, of a peer: {line}", file=sys.stderr)
    return 1 if mistakes else 0


def _cases(args: argparse.Namespace) -> list[Case]:
    if args.suite is not None:
        alone = ("op", "impl", "shape", "dtype", "mode", "device")
        extra = [f"--{name}" for name in alone if getattr(args, name) is not None]
        if extra:
            raise UsageError(f"--suite does not go together with {', '.join(extra)}")
        names = args.suite.split(",")
        for name in names:
            known("suite", name, tuple(SUITES))
        return _on_devices([case for name in names for case in SUITES[name]], f"--suite {args.suite}")
    return [_one_case(args)]


def _one_case(args: argparse.Namespace) -> Case:
    if args.op is None or args.shape is None:
        raise UsageError(f"{args.name} needs --op and --shape{', or --suite' if args.name == 'run' else ''}")
    impls = tuple(args.impl.split(",")) if args.impl else None
    device = args.device or "cpu"
    known("device", device, ("cpu", "cuda"))
    case = make_case(args.op, args.shape, args.mode, args.dtype or "float32", device, impls)
    return _on_devices([case], f"--device {device}")[0]


def _on_devices(cases: list[Case], request: str) -> list[Case]:
    if any(case.device == "cuda" for case in cases) and not torch.cuda.is_available():
        raise UsageError(f"{request}: torch finds no CUDA device")
    return cases


def shares_command(args: argparse.Namespace) -> int:
    case = _one_case(args)
    impls, _ = choose(case, strict=True)
    torch.set_num_threads(args.threads)
    inputs = OPS[case.op].draw(case.shape, DTYPES[case.dtype], case.device)
    found = {}
    for impl in impls:
        builder = next(iter(impl.ways(case.op, case.shape, case.mode).values()))
        call = runner(builder(copies(inputs, case.mode)), case.mode)
        found[impl.name] = shares.shares(call, case.device)
    print(f"{case.label}\n\n{shares.markdown(found)}", end="")
    return 0


def compare_command(args: argparse.Namespace) -> int:
    old, new = files.read(args.old), files.read(args.new)
    lines, missing = compare(old, new, args.band)
    if not lines:
        raise UsageError("the two files have no timed case in common")
    for difference in differences(old, new):
        print(f"note: measured with different {difference}", file=sys.stderr)
    for line in lines:
        print(f"{line.ratio:8.3f}  {line.verdict:6}  {line.name}")
    for name in missing:
        print(f"note: not timed in {args.new}: {name}", file=sys.stderr)
    return 1 if any(line.verdict == "slower" for line in lines) else 0


def report_command(args: argparse.Namespace) -> int:
    results = files.read(args.file)
    table = markdown(results)
    if args.readme is None:
        print(table, end="")
    else:
        insert(args.readme, table)
    if args.png is not None:
        args.png.mkdir(parents=True, exist_ok=True)
        plot(results, args.png / f"{args.file.stem}.png")
    return 0


def counters_command(args: argparse.Namespace) -> int:
    old, new = counters.read(), {}
    mistakes: list[str] = []
    for name in counted_cases(args):
        new[name] = counters.summary(counters.counted(counters.CASES[name]))
        mistakes += counters.worse(old.get(name, {}), new[name], name)
        if not args.check:
            print(counters.table(name, new[name]), flush=True)
    if args.write:
        counters.write(new)
    return said(mistakes) if args.check else 0


def sass_command(args: argparse.Namespace) -> int:
    old = machine_code.read()
    mistakes: list[str] = []
    cases: machine_code.Table = {}
    try:
        if args.arch != machine_code.ARCH and (args.check or args.write):
            raise UsageError(f"--arch {args.arch}: the table is of {machine_code.ARCH}")
        files_of = machine_code.sources(args.arch)
        for name in machine_code.cases_on(args.arch, counted_cases(args)):
            cases[name] = machine_code.look(name, files_of, args.arch)
            mistakes += machine_code.worse(old["cases"].get(name, {}), cases[name], name)
            if not args.check:
                print(machine_code.report(name, cases[name]), flush=True)
    except FileNotFoundError as error:
        raise UsageError(str(error)) from error
    if args.write:
        machine_code.write(cases)
    if args.check and old["ptxas"] != machine_code.release():
        print(f"not compared: the table is of ptxas {old['ptxas']}, this is {machine_code.release()}")
        return 0
    return said(mistakes) if args.check else 0


def kernels_command(args: argparse.Namespace) -> int:
    if reason := without_cuda():
        raise UsageError(f"kernels {reason}")
    print(json.dumps(kernels.run()))
    return 0


def predict_command(args: argparse.Namespace) -> int:
    needs_ptx()
    chosen = [(heads, dims) for heads, dims in predict.HEADS if args.heads in (None, heads)]
    if not chosen or predict.TOKENS % args.seqlen:
        raise UsageError(f"predict: --heads 64, 16 or 8, and --seqlen that divides {predict.TOKENS}")
    print(predict.scans(machine_code.read()["cases"]))
    print(predict.head(), end="")
    for heads, dims in chosen:
        print(predict.sweep(heads, dims, args.seqlen, machine_code.sources(), args.kernels), end="", flush=True)
    return 0


def accuracy_command(args: argparse.Namespace) -> int:
    needs_ptx()
    print(accuracy.table(args.tokens), end="")
    return 0


def needs_ptx() -> None:
    if not _ops.available(_ops.PTX_NAMESPACE):
        raise UsageError("the library of backend='ptx' is not built: run `make ptx`")


def counted_cases(args: argparse.Namespace) -> list[str]:
    needs_ptx()
    cases = [name for name in counters.CASES if args.case in name]
    if not cases:
        raise UsageError(f"--case {args.case}: no case has this in its name")
    if args.case and args.write:
        raise UsageError("--write takes all cases")
    return cases


def said(mistakes: list[str]) -> int:
    for line in mistakes:
        print(f"worse: {line}", file=sys.stderr)
    return 1 if mistakes else 0


def goals_command(args: argparse.Namespace) -> int:
    print(goals.table(args.device, [(path.name, files.read(path)) for path in args.files]), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
