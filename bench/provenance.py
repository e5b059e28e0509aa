"""What a result came from: commit, date, machine, versions."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import xlstm_cuda

ROOT = Path(__file__).resolve().parents[1]
PEERS = ("xlstm", "mlstm_kernels", "fla-core", "flashrnn", "triton")  # what is compared with, and its compiler


def provenance(device: str) -> dict[str, Any]:
    """JSON-able; threads are those set now. commit and dirty are None outside a git checkout."""
    commit, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return {
        "commit": commit,
        "dirty": None if status is None else bool(status),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [Path(word).name if "/" in word else word for word in sys.argv[1:]],  # paths are one machine's
        "torch": torch.__version__,
        "peers": {name: found for name in PEERS if (found := _version(name)) is not None},
        "cpu": cpu_model(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "threads": torch.get_num_threads(),
        "info": xlstm_cuda.info(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
