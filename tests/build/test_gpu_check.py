"""tools/gpu_check with commands and a GPU of our own making: what it asks for, runs, keeps and says."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import xlstm_cuda
from bench import cuda
from bench.goals import GOALS
from tests.support.machine import device_is_lost
from tests.support.paths import ROOT
from tools.gpu_check import __main__ as command
from tools.gpu_check import machine as machines
from tools.gpu_check import parts, redaction, small, summary
from tools.gpu_check.commands import MAX_LOG, Done, Failed, Folder, Shell, Skipped
from tools.gpu_check.machine import Machine, Missing, look
from tools.gpu_check.runner import Part
from xlstm_cuda import functional

GPU = {"name": "Imaginary GPU", "compute capability": "9.0", "SMs": 132, "memory MiB": 1024}
MACHINE = Machine(GPU, {"python": "3", "torch": "2.13.0+cu130", "torch built for CUDA": "13.0", "nvcc": "13.0.88"})


# What the machine lacks


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A PATH and an interpreter that hold only what the returned function puts there: name=what it prints."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def put(**output: str) -> None:
        for name, text in output.items():
            file = folder / name.replace("_", "-")
            file.write_text(f"#!/bin/sh\n/bin/cat <<'END'\n{text}\nEND\n")
            file.chmod(file.stat().st_mode | stat.S_IXUSR)

    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    return put


def refused(out: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that the command ends with."""
    assert command.main(["--out", str(out), *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and not out.exists()
    return printed.err


def test_without_a_gpu(programs: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--machine"], ["--gpu"]):
        said = refused(tmp_path / "out", capsys, *arguments)
        assert said.startswith("gpu-check: no NVIDIA GPU was found (there is no nvidia-smi): run this on a machine")
    programs(nvidia_smi="No devices were found")
    assert "(nvidia-smi lists none)" in refused(tmp_path / "out", capsys)


def test_without_nvcc(programs: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    programs(nvidia_smi="GPU 0: Imaginary GPU")
    for arguments in ([], ["--machine"]):
        said = refused(tmp_path / "out", capsys, *arguments)
        assert said.startswith("gpu-check: no nvcc on the PATH or in CUDA_HOME: install the CUDA toolkit, or set")
    assert command.main(["--gpu"]) == 0


COMPILER = "Cuda compilation tools, release 13.0, V13.0.88"
PROBED = {"torch": "2.13.0+cu130", "torch built for CUDA": "13.0", "gpu": GPU}


@pytest.mark.parametrize(
    "probed, message",
    [
        ({**PROBED, "torch": "2.13.0+cpu", "gpu": None}, "torch 2.13.0+cpu finds no CUDA device"),
        ({**PROBED, "gpu": {**GPU, "compute capability": "7.5"}}, "Imaginary GPU has compute capability 7.5"),
        (None, "torch cannot be imported"),
    ],
)
def test_torch_without_a_usable_gpu(
    probed: dict[str, Any] | None, message: str, programs: Callable[..., None], tmp_path: Path, capsys: Any
) -> None:
    programs(nvidia_smi="GPU 0: Imaginary GPU", nvcc=COMPILER, cmake="", ninja="", python=json.dumps(probed))
    assert message in refused(tmp_path / "out", capsys, "--parts", "calibrate")


def test_missing_packages_and_tools_are_named(programs: Callable[..., None]) -> None:
    programs(nvidia_smi="GPU 0: Imaginary GPU", nvcc=COMPILER, cmake="")
    with pytest.raises(Missing, match=r"/python has no no_such_package, ninja: install them there, or name another"):
        look(["pytest", "no_such_package"], machines.environment())


def test_a_usable_machine(programs: Callable[..., None]) -> None:
    tools = {"nvcc": COMPILER, "cmake": "", "ninja": "", "python": json.dumps(PROBED)}
    programs(nvidia_smi="GPU 0: Imaginary GPU", **tools)
    found = look(["pytest"], machines.environment())
    assert found.gpu == GPU and found.versions["nvcc"] == "13.0.88" and found.versions["torch"] == "2.13.0+cu130"
    programs(nvidia_smi="1980")  # as an answer to a query; no GPU in the list any more
    assert machines._smi(machines.environment())["SM clock MHz, maximum"] == "1980"
    programs(nvidia_smi="[N/A]")
    assert machines._smi(machines.environment()) == {}


@pytest.mark.parametrize("capability, architecture", [("8.0", "80-real"), ("9.0", "90a-real"), ("12.0", "120-real")])
def test_architecture(capability: str, architecture: str) -> None:
    assert Machine({"compute capability": capability}, {}).architecture == architecture


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine may have a GPU")
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_target_without_a_gpu() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(
        ["make", "gpu-check", f"PYTHON={sys.executable}"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("gpu-check: no NVIDIA GPU was found")


# Running parts


def printing(text: str) -> Callable[[Shell, Machine], dict[str, Any]]:
    def run(shell: Shell, machine: Machine) -> dict[str, Any]:
        shell.run(sys.executable, "-c", f"print({text!r})")
        return {"found": "as expected"}

    return run


def failing(shell: Shell, machine: Machine) -> dict[str, Any]:
    shell.run(sys.executable, "-c", "print('it is broken'); raise SystemExit(3)")
    return {}


def skipping(shell: Shell, machine: Machine) -> dict[str, Any]:
    raise Skipped("there is no tool for it")


def confused(shell: Shell, machine: Machine) -> dict[str, Any]:
    raise KeyError("compared")


READY_AND_SLEEP = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"


def run_out_of_time(shell: Shell, program: str) -> None:
    """Runs a Python program whose time is up as soon as it has made the file that it is told."""
    wait = subprocess.Popen.wait

    def wait_for_file(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        while timeout is not None and not ready.exists() and process.poll() is None:
            time.sleep(0.01)
        return wait(process, timeout and 0)

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        ready = Path(folder) / "ready"
        patch.setattr(subprocess.Popen, "wait", wait_for_file)
        shell.run(sys.executable, "-c", program, ready)


def sleeping(shell: Shell, machine: Machine) -> dict[str, Any]:
    run_out_of_time(shell, f"print('half way', flush=True); {READY_AND_SLEEP}")
    return {}


def run(out: Path, *chosen: Part) -> tuple[int, dict[str, Any], str]:
    """Exit status, summary.json and summary.md."""
    out.mkdir(exist_ok=True)
    status = command.check(chosen, MACHINE, out, dict(os.environ))
    return status, json.loads((out / "summary.json").read_text()), (out / "summary.md").read_text()


def test_the_parts_that_fail_do_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, record, text = run(
        tmp_path / "out",
        Part("build", 60, printing("built")),
        Part("calibrate", 60, failing),
        Part("tests", 1, sleeping, needs="build"),
        Part("sanitizer", 60, skipping),
        Part("bench", 60, confused),
    )
    outcomes = {part["part"]: part for part in record["parts"]}
    statuses = {name: part["status"] for name, part in outcomes.items()}
    assert status == 1 and statuses == {
        **{"build": "passed", "calibrate": "failed", "tests": "failed", "sanitizer": "skipped", "bench": "failed"},
    }
    assert outcomes["calibrate"]["reason"].endswith("ended with status 3")
    assert outcomes["calibrate"]["tail"][-2:] == ["it is broken", "[exit status 3]"]
    assert outcomes["tests"]["reason"].startswith("time limit of 1 s reached")
    assert outcomes["tests"]["tail"][-2:] == ["half way", "[stopped at the time limit]"]
    assert outcomes["sanitizer"]["reason"] == "there is no tool for it"
    assert outcomes["bench"]["reason"] == "KeyError: 'compared'"
    files = list((tmp_path / "out").iterdir())
    assert len(files) <= 8 and all(file.is_file() for file in files)
    assert "Failed: calibrate, tests, bench." in text and "it is broken" in text and "half way" in text
    assert "| build | passed | " in text and outcomes["build"]["commands"][0] in text
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:-1]] == [*map(list, statuses.items())]


def test_nothing_failed(tmp_path: Path) -> None:
    status, record, text = run(tmp_path, Part("build", 60, printing("fine")), Part("sanitizer", 60, skipping))
    assert status == 0 and "Nothing failed." in text
    assert (tmp_path / "build.log").read_text().endswith("\nfine\n[exit status 0]\n\n")
    assert {file.name for file in tmp_path.iterdir()} == {"build.log", "summary.json", "summary.md"}
    assert (record["gpu"], record["versions"]) == (MACHINE.gpu, MACHINE.versions)


def test_what_needs_a_failed_part_is_skipped(tmp_path: Path) -> None:
    """An extension built earlier must not be taken for this one."""
    status, record, _ = run(
        tmp_path,
        Part("build", 60, failing),
        Part("calibrate", 60, printing("x")),
        Part("tests", 60, failing, (), "build"),
    )
    assert status == 1
    assert [(part["status"], part["reason"]) for part in record["parts"]][1:] == [
        ("passed", ""),
        ("skipped", "build failed"),
    ]


def test_the_time_limit_ends_all_that_a_command_has_started(tmp_path: Path) -> None:
    child = f"import os; print(os.getpid(), flush=True); {READY_AND_SLEEP}"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}, sys.argv[1]])"

    def nested(shell: Shell, machine: Machine) -> dict[str, Any]:
        run_out_of_time(shell, parent)
        return {}

    status, record, _ = run(tmp_path, Part("tests", 2, nested))
    assert status == 1
    process = int(record["parts"][0]["tail"][-2])
    deadline = time.monotonic() + 60  # it is killed; the system may take a while to say so
    while alive(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(process)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_commands_run_together_share_the_limit(tmp_path: Path) -> None:
    shell = Shell(ROOT, Folder(tmp_path, redaction.redactor({}, {})), "a.log", 240, dict(os.environ))
    barrier = "import pathlib, sys, time\nmine, other = map(pathlib.Path, sys.argv[1:])\nmine.touch()\n"
    barrier += "while not other.exists(): time.sleep(0.01)\nprint(mine.name)"
    one, two = tmp_path / "one", tmp_path / "two"
    done = shell.together([(sys.executable, "-c", barrier, *pair) for pair in ((one, two), (two, one))])
    assert [(d.status, d.output) for d in done] == [(0, "one\n"), (0, "two\n")]


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    shell = Shell(ROOT, Folder(tmp_path, redaction.redactor({}, {})), "a.log", 30, dict(os.environ))
    with pytest.raises(Failed, match="`no-such-program` ended with status 127"):
        shell.run("no-such-program")
    assert "No such file" in (tmp_path / "a.log").read_text()


def test_logs_are_bounded_and_without_progress_bars(tmp_path: Path) -> None:
    shell = Shell(ROOT, Folder(tmp_path, redaction.redactor({}, {})), "a.log", 60, dict(os.environ))
    script = f"print('10%\\r50%\\r\\x1b[32mdone\\x1b[0m'); print('x' * {3 * MAX_LOG}); print('last')"
    assert shell.run(sys.executable, "-c", script).startswith("done\nxxx")
    log = (tmp_path / "a.log").read_text()
    assert len(log) < 1.01 * MAX_LOG + len(script) and "characters left out" in log and "\nlast\n" in log


# The folder


def test_the_default_folder_has_at_most_eight_files_and_nine_minutes_pass() -> None:
    files = {"summary.json", "summary.md", "bench.json", *(part.log for part in parts.PARTS)}
    assert len(files) <= 8 and sum(part.seconds for part in parts.PARTS) <= 530
    table = re.findall(r"^\| `(\w+)` \| .* \| (\d+) s \|$", (ROOT / "docs" / "gpu-check.md").read_text(), re.MULTILINE)
    assert table == [(part.name, f"{part.seconds:g}") for part in parts.PARTS]
    assert [part.name for part in parts.PARTS] == ["build", "calibrate", "tests", "sanitizer", "bench"]


def test_parts_are_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[Sequence[str]] = []

    def usable(modules: Sequence[str], environment: Mapping[str, str]) -> Machine:
        asked.append(modules)
        return MACHINE

    monkeypatch.setattr(command, "look", usable)
    fakes = [Part("build", 60, failing, ("pybind11",)), Part("tests", 60, printing("x"), ("pytest",), "build")]
    (tmp_path / "bench.json").write_text("{}")  # of an earlier run
    (tmp_path / "build.log").write_text("old")
    chosen = ["--parts", "tests", "--out", str(tmp_path), "--commit", "abc"]
    assert command.main(chosen, [*fakes, Part("bench", 60, failing)]) == 0
    assert asked == [["pytest"]]
    assert {file.name for file in tmp_path.iterdir()} == {"tests.log", "summary.json", "summary.md"}
    (tmp_path / "notes.txt").write_text("mine")
    assert command.main(chosen, fakes) == 2 and (tmp_path / "tests.log").exists()
    assert "holds notes.txt" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        command.main(["--parts", "tests,fast"], fakes)
    assert "unknown part 'fast': expected some of build,tests" in capsys.readouterr().err


def test_nothing_tells_whose_machine_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.setattr("getpass.getuser", lambda: "alice")
    monkeypatch.setattr("socket.gethostname", lambda: "node17.example.org")
    told = [
        ROOT / "csrc" / "a.h",
        "/home/alice/cache",
        "/home/bob/x",
        Path("/", "root", "y"),
        "/tmp/pytest-of-alice/0",
        "on node17:",
    ]
    told += ["node17.example.org", f"{sys.prefix}/lib", "malice"]

    def telling(shell: Shell, machine: Machine) -> dict[str, Any]:
        shell.run(sys.executable, "-c", "import sys; print(*sys.argv[1:], sep='\\n')", *map(str, told))
        shell.folder.write_json("bench.json", {"ceilings": {}, "cases": [], "alice": ["/home/alice/b.json"]})
        raise Failed(f"in {ROOT}/tests by alice", {"where": str(ROOT)})

    status, record, _ = run(tmp_path, Part("bench", 60, telling))
    kept = "".join(file.read_text() for file in tmp_path.iterdir())
    for secret in (str(ROOT), "/home/", "node17", "bob", "/root", str(Path(sys.prefix))):
        assert secret not in kept, secret
    assert re.findall(r"(?<![A-Za-z])alice", kept) == ["alice"]  # the key, which is no string of the machine's
    (part,) = record["parts"]
    assert part["reason"] == "in ./tests by <user>" and part["figures"] == {"where": "."}
    assert part["tail"][-10:-1] == [
        *("./csrc/a.h", "~/cache", "~/x", "~/y", "<tmp>/pytest-of-<user>/0", "on <host>:", "<host>"),
        *("<python>/lib", "malice"),
    ]
    assert json.loads((tmp_path / "bench.json").read_text())["alice"] == ["~/b.json"]


def test_redaction_replaces_whole_names_and_the_longest_path() -> None:
    rules = redaction.redactor({"/src": "A", "/src/repo": ".", "/usr": "B"}, {"gpu": "<host>", "root": "<user>"})
    assert rules.text("/src/repo/x /src/repository /src/y /usr/bin") == "./x A/repository A/y /usr/bin"
    assert rules.text("gpu: gpus, my-gpu-1; root") == "<host>: gpus, my-<host>-1; root"


# What the real parts make of the output of their commands


class Canned(Shell):
    """Answers commands with what it is given, by a word of the command line: (status, output)."""

    def answer(self, **answers: tuple[int, str]) -> Canned:
        self.answers = answers
        return self

    def _execute(self, command: list[str], extra: dict[str, str]) -> Done:
        line = " ".join(command)
        status, output = next((v for k, v in self.answers.items() if k in line), (0, ""))
        return Done(line, status, output)


@pytest.fixture
def canned(tmp_path: Path) -> Canned:
    folder = Folder(tmp_path, redaction.redactor({}, {}))
    return Canned(ROOT, folder, "a.log", 60, {"PATH": str(tmp_path)})


def test_build_wants_cuda_kernels(canned: Canned) -> None:
    built = {"cuda": "13.0", "cuda_archs": ["90a"]}
    assert parts.build(canned.answer(build_info=(0, json.dumps(built))), MACHINE)["build_info"] == built
    assert "XLSTM_CUDA=on" not in canned.environment
    with pytest.raises(Failed, match="without CUDA kernels"):
        parts.build(canned.answer(build_info=(0, '{"cuda": null, "cuda_archs": []}')), MACHINE)
    with pytest.raises(Failed, match="pip install .* ended with status 1"):
        parts.build(canned.answer(pip=(1, "no")), MACHINE)


def test_calibrate_counts_the_cases_that_differ(canned: Canned) -> None:
    lines = "ok   gemm: correct\nFAIL wgmma: correct     the first values differ by 0.5\n"
    right, wrong = '{"compared": 90, "rows": 96, "different": 0}', '{"compared": 90, "rows": 96, "different": 1}'
    probe = {"L2 round trip": 1400.25, "clusters": []}
    asked = "ask  asked: TMA stores below zero     not as expected, error 2\n"
    answers = {"golden": (0, f"ok   a\n{asked}{right}\n"), "simt_probe": (0, json.dumps(probe))}
    figures = parts.calibrate(canned.answer(**answers), MACHINE)
    assert figures["asked"] == {"TMA stores below zero": "not as expected, error 2"}
    assert (figures["compared"], figures["probe, ns"]) == (90, probe)
    assert figures["found"] == "90 cases compared, 0 differ; L2 round trip 1400 ns"
    assert any("-DCMAKE_CUDA_ARCHITECTURES=90a-real" in line for line in canned.commands)
    with pytest.raises(Failed, match="90 cases compared, 1 differ") as raised:
        parts.calibrate(canned.answer(golden=(1, lines + wrong)), MACHINE)
    assert raised.value.figures["wrong"] == ["wgmma: correct     the first values differ by 0.5"]
    with pytest.raises(Failed, match="printed no result"):
        parts.calibrate(canned.answer(golden=(-11, "ok   a\n")), MACHINE)
    with pytest.raises(Failed, match="simt_probe.* ended with status 1"):
        parts.calibrate(canned.answer(**{**answers, "simt_probe": (1, "refused")}), MACHINE)


def test_a_lost_device_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def synchronize() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert not device_is_lost()
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert device_is_lost()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert not device_is_lost()


def test_tests_are_counted_by_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run without the backend cuda passes in pytest and must not here."""
    (tmp_path / "conftest.py").write_text(
        "import pytest\n@pytest.fixture(params=['cpu', 'cuda'])\ndef backend(request, record_property):\n"
        "    record_property('backend', request.param)\n    return request.param\n"
    )
    (tmp_path / "test_x.py").write_text(
        "import pytest\ndef test_a(backend): pass\ndef test_cuda(): pass\n"
        "def test_b(backend): assert backend != 'cuda'\n@pytest.mark.skip(reason='why')\ndef test_cuda2(): pass\n"
    )
    folder = Folder(tmp_path, redaction.redactor({}, {}))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setattr(parts, "find_spec", lambda name: None)  # one process is quicker here

    def outcome() -> dict[str, Any]:
        return parts.tests(Shell(tmp_path, folder, "a.log", 120, dict(os.environ)), MACHINE)

    with pytest.raises(Failed, match="2 passed, 1 failed, 1 skipped") as raised:
        outcome()
    figures = raised.value.figures
    assert figures["backend cuda passed"] == 1 and figures["failures"] == ["test_x::test_b[cuda]"]
    assert figures["skip reasons"] == {"why": 1}
    (tmp_path / "test_x.py").write_text("def test_cuda(): pass\n")
    with pytest.raises(Failed, match="no test ran on the backend cuda"):
        outcome()
    (tmp_path / "test_x.py").write_text("def test_a(backend): pass\n")
    assert outcome()["passed"] == 1


def test_the_backend_fixture_reports_itself(backend: str, request: pytest.FixtureRequest) -> None:
    assert ("backend", backend) in request.node.user_properties


CLEAN = "========= ERROR SUMMARY: 0 errors\n"
HAZARD = "========= RACECHECK SUMMARY: 1 hazards displayed (1 errors, 0 warnings)\n"


@pytest.mark.parametrize(
    "status, output, verdict",
    [
        (0, CLEAN, "clean (ERROR SUMMARY: 0 errors)"),
        (0, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", "clean (RACECHECK"),
        (86, "========= Invalid __global__ read\n========= ERROR SUMMARY: 3 errors\n", "failed (ERROR SUMMARY: 3"),
        (86, HAZARD, "failed (RACECHECK SUMMARY: 1 hazards"),
        (0, HAZARD, "failed (RACECHECK SUMMARY: 1 hazards"),
        (0, CLEAN + "========= ERROR SUMMARY: 1 error\n", "failed (ERROR SUMMARY: 1 error)"),
        (1, "========= Error: Target application terminated before first instrumented API call\n", "refused (Error: T"),
        (1, "========= Internal Sanitizer Error: Device not supported.\n" + CLEAN, "refused (Internal Sanitizer"),
        (255, "Unable to find injection library libsanitizer-collection.so\n", "refused (Unable to find"),
        (1, CLEAN, "failed (exit status 1)"),
        (0, "nothing was looked at\n", "failed (exit status 0, no summary)"),
    ],
)
def test_sanitizer_verdicts(status: int, output: str, verdict: str) -> None:
    assert parts.sanitizer_verdict(Done("compute-sanitizer", status, output)).startswith(verdict)


def test_sanitizer_part(canned: Canned, tmp_path: Path) -> None:
    with pytest.raises(Skipped, match="there is no compute-sanitizer"):
        parts.sanitizer(canned.answer(), MACHINE)
    tool = tmp_path / "compute-sanitizer"
    tool.touch(0o755)
    ran = (0, '{"ran": ["mlstm_step"], "without a CUDA kernel": ["mlstm"]}')
    refusal = (1, "========= Error: Device not supported\n")

    def part(**answers: tuple[int, str]) -> dict[str, Any]:
        return parts.sanitizer(canned.answer(**answers), MACHINE)

    assert part(sanitizer=(0, CLEAN), small=ran)["ran"] == ["mlstm_step"]
    assert [line.split(" --tool ")[1].split()[0] for line in canned.commands if "--tool" in line] == [*parts.TOOLS]
    with pytest.raises(Failed, match="memcheck: clean .*; racecheck: failed .1 hazards|racecheck: failed"):
        part(racecheck=(86, HAZARD), sanitizer=(0, CLEAN), small=ran)
    with pytest.raises(Skipped, match="compute-sanitizer refused .Error: Device not supported"):
        part(sanitizer=refusal, small=ran)
    assert part(memcheck=refusal, sanitizer=(0, CLEAN), small=ran)["memcheck"].startswith("refused")
    with pytest.raises(Skipped, match="no op has a CUDA kernel"):
        part(small=(0, '{"ran": [], "without a CUDA kernel": ["mlstm"]}'))
    with pytest.raises(Failed, match="ended with status 1"):  # wrong without the tool: never taken for a refusal
        part(small=(1, "AssertionError"), sanitizer=refusal)


def results(**figures: dict[str, Any]) -> dict[str, Any]:
    """Of a run of the first case of a goal on a GPU: entries by implementation, _ for -."""
    goal = GOALS["cuda"][0].case
    entries = [{"impl": name.replace("_", "-"), "check": {}, **entry} for name, entry in figures.items()]
    record = {"op": goal.op, "shape": goal.shape, "mode": goal.mode, "dtype": goal.dtype, "device": "cuda"}
    ceilings = {"float32": {"copy_gbs": 4000.0, "gemm_gflops": 1.0}}
    return {"format": 1, "ceilings": ceilings, "cases": [{**record, "results": entries, "skipped": {}}]}


def test_bench_part_and_its_goals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"median": 6e-6, "gbs": 1400.0, "copy_percent": 35.0}
    measured = results(cuda_graph=entry, cuda={"error": "failed: no"}, reference={**entry, "median": 3e-4})
    script = "import json, sys; open(sys.argv[sys.argv.index('--json') + 1], 'w').write({!r}); sys.exit({})"

    def writing(value: dict[str, Any], status: int) -> None:
        fake = tmp_path / "python"
        fake.write_text(f"#!{sys.executable}\n{script.format(json.dumps(value), status)}\n")
        fake.chmod(0o755)
        monkeypatch.setattr(parts, "PYTHON", str(fake))

    monkeypatch.setattr(command, "ROOT", tmp_path)
    bench = Part("bench", 60, parts.bench)
    writing(measured, 1)
    status, record, text = run(tmp_path / "out", bench)
    assert status == 1 and record["parts"][0]["reason"] == "1 of 3 wrong or failing"
    assert [goal["verdict"] for goal in record["goals"]] == ["met", *["not measured"] * (len(GOALS["cuda"]) - 1)]
    case = GOALS["cuda"][0].case.label
    assert f"| {case}: microseconds, cuda-graph | at most 8 | 6.00 | met |" in text
    assert f"| {case} | cuda-graph | 6.0 | 1400 | 35 | 50.0 |" in text and f"| {case} | cuda | failed: no |" in text
    assert "float32 4000 GB/s" in text and " | reference | " not in text
    writing(results(reference=entry), 0)
    (outcome,) = run(tmp_path / "out", bench)[1]["parts"]
    assert outcome["status"] == "skipped" and outcome["reason"] == "no op has a CUDA kernel in this build"


def test_bench_part_keeps_what_a_stopped_run_has_finished(canned: Canned, monkeypatch: pytest.MonkeyPatch) -> None:
    value = results(cuda={"median": 1.0})

    def stopped(command: list[str], extra: dict[str, str]) -> Done:
        assert command[command.index("--suite") + 1] == "cuda,cuda-mlstm,cuda-recurrent"
        (canned.root / command[command.index("--json") + 1]).write_text(json.dumps(value))
        return Done("bench run", None, "")

    monkeypatch.setattr(canned, "root", canned.folder.path)
    monkeypatch.setattr(canned, "_execute", stopped)
    with pytest.raises(Failed, match="time limit"):
        parts.bench(canned, MACHINE)
    assert json.loads((canned.folder.path / "bench.json").read_text()) == value


def test_sequences_are_summarised_with_their_peers() -> None:
    goal = next(goal.case for goal in GOALS["cuda"] if goal.case.op == "mlstm")
    figures = {"gflops": 5e5, "gemm_percent": 62.5}
    entries = [
        {"impl": "cuda", "median": 2e-3, **figures},
        {
            "impl": "peer",
            "peer": True,
            "note": "chunk 64",
            "wrong": "relative error of df 1",
            "median": 5e-3,
            **figures,
        },
        {"impl": "other", "peer": True, "error": "failed: no"},
    ]
    record = {"op": goal.op, "shape": goal.shape, "mode": goal.mode, "dtype": goal.dtype, "device": "cuda"}
    ceilings = {"bfloat16": {"copy_gbs": 4000.0, "gemm_gflops": 8e5}}
    measured = {"ceilings": ceilings, "cases": [{**record, "results": entries}]}
    text = "\n".join(summary._measured(measured))
    assert "bfloat16 4000 GB/s; gemm bfloat16 800 TFLOP/s." in text and text.count(goal.label) == 3
    assert f"| {goal.label} | cuda | 2 | 500 | 62 | 1.00 |" in text
    assert f"| {goal.label} | peer (chunk 64; wrong: relative error of df 1) | 5 | 500 | 62 | 2.50 |" in text
    assert f"| {goal.label} | other | failed: no | " in text


def test_small_shapes_run_every_op_and_notice_a_wrong_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small, "has_cuda_kernel", lambda kernel: True)
    monkeypatch.setattr(small, "DTYPES", (torch.float32, torch.bfloat16))
    done = small.main("cpu")
    assert sorted(done["ran"]) == sorted(cuda.KERNELS) and done["without a CUDA kernel"] == []
    right = functional.lstm_step

    def wrong(*args: Any, backend: str | None = None, **named: Any) -> Any:
        h, state = right(*args, backend=backend, **named)
        return (h if backend else h * 1.1), state

    monkeypatch.setattr(functional, "lstm_step", wrong)
    with pytest.raises(AssertionError, match="output: relative error"):
        small.main("cpu")
    monkeypatch.setattr(small, "has_cuda_kernel", lambda kernel: kernel.startswith("mlstm_step"))
    others = [op for op in cuda.KERNELS if op != "mlstm_step"]
    assert small.main("cpu") == {"ran": ["mlstm_step"], "without a CUDA kernel": others}


def test_small_shapes_refuse_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small, "has_cuda_kernel", lambda kernel: True)
    right = functional.mlstm

    def falling_back(*args: Any, **named: Any) -> Any:
        xlstm_cuda._backend._without_cuda("mlstm")
        return right(*args, **named)

    monkeypatch.setattr(functional, "mlstm", falling_back)
    with pytest.raises(UserWarning, match="xlstm_cuda: mlstm: this build has no CUDA kernel"):
        small.main("cpu")
