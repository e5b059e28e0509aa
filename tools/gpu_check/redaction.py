"""Removes what identifies a machine and its user from everything that is kept."""

from __future__ import annotations

import getpass
import re
import socket
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOMES = re.compile(r"/(?:home|Users)/[^/\s:;,'\"()]+|/root(?![\w-])")
GENERIC = {"root", "user", "ubuntu", "admin", "runner", "localhost"}  # say nothing about anyone
SHARED = {"/", "/usr", "/usr/local"}  # prefixes of interpreters that are the same everywhere


@dataclass(frozen=True)
class Redactor:
    rules: tuple[tuple[re.Pattern[str], str], ...]

    def text(self, text: str) -> str:
        for pattern, replacement in self.rules:
            text = pattern.sub(replacement, text)
        return text

    def value(self, value: Any) -> Any:
        """The same for every string in what JSON can hold. Keys are ours and stay."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self.value(item) for key, item in value.items()}
        return [self.value(item) for item in value] if isinstance(value, (list, tuple)) else value


def redactor(paths: Mapping[str, str], names: Mapping[str, str]) -> Redactor:
    """paths and names (of users and hosts): what they are replaced by. Home folders become ~ in any case."""
    longest_first = sorted(paths.items(), key=lambda item: -len(item[0]))
    folders = [(re.compile(re.escape(path) + r"(?![\w-])"), new) for path, new in longest_first if path not in SHARED]
    words = [
        (re.compile(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])"), new)
        for name, new in sorted(names.items(), key=lambda item: -len(item[0]))
        if name and name.lower() not in GENERIC
    ]
    return Redactor((*folders, (HOMES, "~"), *words))


def of_this_machine(root: Path) -> Redactor:
    host = socket.gethostname()
    paths = {
        **_each_way(sys.prefix, "<python>"),
        **_each_way(tempfile.gettempdir(), "<tmp>"),
        **_each_way(Path.home(), "~"),
        **_each_way(sys.executable, "python"),
        **_each_way(root, "."),
    }
    return redactor(paths, {**{name: "<host>" for name in (host, host.partition(".")[0])}, _user(): "<user>"})


def _each_way(path: str | Path, new: str) -> dict[str, str]:
    """A path as it was given and without links."""
    return {str(spelling): new for spelling in (Path(path).absolute(), Path(path).resolve())}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in containers
        return ""
