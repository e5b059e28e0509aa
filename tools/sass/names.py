"""Readable names of kernels."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence


def demangled(symbols: Sequence[str]) -> list[str]:
    """'file.cu: kernel<arguments>' for the mangled name of a kernel in an anonymous namespace."""
    result = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True)
    names = []
    for symbol, text in zip(symbols, result.stdout.splitlines(), strict=True):
        file = re.search(r"_GLOBAL__N__[0-9a-f]+_\d+_(\w+)_cu_", symbol)
        kernel = re.sub(r"\(anonymous namespace\)::|xlstm::cuda::|xlstm::|\([\w:]+\)(?=-?\d)", "", text)
        kernel = kernel.removeprefix("void ").partition("(")[0]
        names.append(f"{file.group(1) if file else '?'}.cu: {kernel}")
    return names
