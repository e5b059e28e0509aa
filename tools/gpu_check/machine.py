"""The machine: what has to be there before anything is started, and what it is called in the results."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# gpu: what the GPU is to torch, None without one. Runs in a process of its own: a driver that hangs is stopped.
PROBE = """
import json, torch
p = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
print(json.dumps({"torch": torch.__version__, "torch built for CUDA": torch.version.cuda, "gpu": p and {
    "name": p.name, "compute capability": f"{p.major}.{p.minor}", "SMs": p.multi_processor_count,
    "memory MiB": p.total_memory >> 20, "L2 MiB": p.L2_cache_size / 2**20}}))
"""
QUERIES = {  # nvidia-smi's names
    "driver_version": "driver",
    "clocks.max.sm": "SM clock MHz, maximum",
    "clocks.max.mem": "memory clock MHz, maximum",
    "clocks.sm": "SM clock MHz, before",
    "clocks.mem": "memory clock MHz, before",
    "power.limit": "power limit W",
}
LEAST_CAPABILITY = (8, 0)


class Missing(Exception):
    """A requirement that this machine does not meet, and the remedy, in a sentence."""


@dataclass(frozen=True)
class Machine:
    gpu: dict[str, Any]
    versions: dict[str, str]

    @property
    def architecture(self) -> str:
        """As CMAKE_CUDA_ARCHITECTURES wants it; Hopper's own instructions need the a."""
        code = self.gpu["compute capability"].replace(".", "")
        return f"{code}a-real" if code == "90" else f"{code}-real"


def environment() -> dict[str, str]:
    """For all commands: tools that came with the interpreter or with CUDA are found, GPU 0 is nvidia-smi's, and
    kernels are built for the GPU that is there, not for those that a container was made for."""
    cuda = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    path = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), str(Path(cuda) / "bin")]
    inherited = {key: value for key, value in os.environ.items() if key != "TORCH_CUDA_ARCH_LIST"}
    return {**inherited, "PATH": os.pathsep.join(path), "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "PYTHONUNBUFFERED": "1"}


def require_gpu(env: Mapping[str, str]) -> None:
    """Raises Missing without a GPU. Imports nothing and asks nothing of the interpreter."""
    listed = _output(["nvidia-smi", "-L"], env)
    if listed is None or "GPU " not in listed:
        how = "there is no nvidia-smi" if listed is None else "nvidia-smi lists none"
        raise Missing(
            f"no NVIDIA GPU was found ({how}): run this on a machine that has one; `make test` runs what needs none"
        )


def require_nvcc(env: Mapping[str, str]) -> None:
    """Raises Missing without nvcc."""
    if _output(["nvcc", "--version"], env) is None:
        raise Missing(
            "no nvcc on the PATH or in CUDA_HOME: install the CUDA toolkit, or set CUDA_HOME to where it is installed"
        )


def look(modules: Sequence[str], env: Mapping[str, str]) -> Machine:
    """The machine. modules: what the chosen parts import. Raises Missing where something is not there."""
    require_gpu(env)
    require_nvcc(env)
    tools = [tool for tool in ("cmake", "ninja") if shutil.which(tool, path=env["PATH"]) is None]
    lacking = [name for name in ("torch", *modules) if importlib.util.find_spec(name) is None]
    if tools or lacking:
        raise Missing(
            f"{sys.executable} has no {', '.join([*lacking, *tools])}: install them there, or name another interpreter "
            "with `make gpu-check PYTHON=path`, or leave parts out with ARGS='--parts ...'"
        )
    probed = _output([sys.executable, "-c", PROBE], env, seconds=60)
    if probed is None or not probed.strip().startswith("{"):
        raise Missing(f"torch cannot be imported by {sys.executable} or hangs there: try `import torch`")
    found = json.loads(probed)
    gpu, torch_version = found.pop("gpu"), found["torch"]
    if gpu is None:
        raise Missing(
            f"torch {torch_version} finds no CUDA device (it was built for CUDA {found['torch built for CUDA']}): "
            "install a torch that was built for CUDA and suits the driver, and look at CUDA_VISIBLE_DEVICES"
        )
    if tuple(map(int, gpu["compute capability"].split("."))) < LEAST_CAPABILITY:
        raise Missing(f"{gpu['name']} has compute capability {gpu['compute capability']}: the kernels need 8.0 or more")
    compiler = re.search(r"release [\d.]+, V([\d.]+)", _output(["nvcc", "--version"], env) or "")
    versions = {
        "python": platform.python_version(),
        **{key: str(value) for key, value in found.items()},
        "nvcc": compiler[1] if compiler else "unknown",
    }
    return Machine({**gpu, **_smi(env)}, versions)


def _smi(env: Mapping[str, str]) -> dict[str, str]:
    """The first GPU that programs see, as nvidia-smi reports it. Some fields are missing on some machines."""
    first = env.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()
    which = first if first.isdigit() or first.startswith("GPU-") else "0"
    told = {}
    for query, name in QUERIES.items():
        command = ["nvidia-smi", "-i", which, f"--query-gpu={query}", "--format=csv,noheader,nounits"]
        value = (_output(command, env) or "").strip()
        if re.fullmatch(r"[\w.]+", value):
            told[name] = value
    return told


def _output(command: list[str], env: Mapping[str, str], seconds: float = 20) -> str | None:
    """What it printed, None where it is not there, fails or hangs."""
    program = shutil.which(command[0], path=env["PATH"])
    if program is None:
        return None
    try:
        done = subprocess.run([program, *command[1:]], env=env, capture_output=True, text=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
