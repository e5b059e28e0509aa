"""A PTX file as modules, functions and statements, each with its source line and the calls that it was inlined by."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath

from .types import BYTES, Unsupported, cpp_type

# What has been read and tested: the versions of the PTX ISA, and targets whose code the executor can imitate.
VERSIONS = [f"8.{minor}" for minor in range(10)] + ["9.0"]
TARGETS = ("sm_80", "sm_90a")
SHARED_ALIGNMENT = 1024  # of dynamic shared memory: XLSTM_SHARED asks for it, and the executor gives it
MOST_FRAMES = 4  # of inlined calls in a source line


def split_list(text: str) -> list[str]:
    """Split at the commas that are in no bracket."""
    parts, depth, current = [], 0, ""
    for c in text:
        depth += (c in "{[(") - (c in "}])")
        if c == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += c
    return [*parts, current.strip()] if current.strip() else parts


@dataclass
class Statement:
    """An instruction. `guard` is "", "%p1" or "!%p1"; `site` the number of its source line, `line` that of the PTX."""

    text: str
    guard: str
    opcode: str
    operands: list[str]
    site: int
    line: int


@dataclass
class Function:
    """A kernel, or what kernels call. Its body holds statements, and labels as strings. `local`: other files may have
    one of its name."""

    name: str
    local: bool = False
    is_kernel: bool = True
    parameters: dict[str, int] = field(default_factory=dict)  # offsets
    layout: list[tuple[int, int]] = field(default_factory=list)  # offset and bytes of each
    body: list[Statement | str] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)  # name, or prefix of numbered ones: C++ type
    local_bytes: dict[str, int] = field(default_factory=dict)
    results: dict[str, int] = field(default_factory=dict)  # of a called function: bytes of what it returns
    passed: dict[str, int] = field(default_factory=dict)  # bytes of what is given to calls, and of what they return
    calls: list[Function] = field(default_factory=list)  # every function that runs in it, callees first


@dataclass
class Variable:
    """A variable of the module, in global or constant memory."""

    kind: str
    count: int
    value: str


class Sites:
    """Source lines by number: (the frames but the last line, "mma.h:40 < tile.h", and that line, 96)."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[str, int], int] = {("", 0): 0}

    def add(self, frames: list[tuple[str, int]]) -> int:
        names = [f"{name}:{line}" for name, line in frames]
        key = (" < ".join([*names[:-1], frames[-1][0]]), frames[-1][1])
        return self.numbers.setdefault(key, len(self.numbers))


class Module:
    """All of a PTX file. Raises Unsupported for a file that is no PTX, is cut short or has what is not known."""

    def __init__(self, text: str) -> None:
        text = re.sub(r"/\*.*?\*/", lambda comment: "\n" * comment[0].count("\n"), text, flags=re.DOTALL)
        self.target = check_header(text)
        self.files = {int(n): PurePath(p).name for n, p in re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]+)"', text, re.M)}
        text = re.split(r"^\s*\.section\b", text, maxsplit=1, flags=re.M)[0]
        text = re.sub(r"//[^\n]*", "", text)
        self.sites = Sites()
        self.shared: list[str] = []
        for alignment, name in re.findall(r"\.extern \.shared \.align (\d+) [^;]*?([\w$]+)\[\]\s*;", text):
            if int(alignment) < SHARED_ALIGNMENT:
                raise Unsupported(f"{name} is aligned to {alignment}: the executor would give it {SHARED_ALIGNMENT}")
            self.shared.append(name)
        self.variables: dict[str, Variable] = {}
        for line in re.findall(r"^(?:\.visible |\.weak |\.extern )?\.(?:global|const) [^;]*;", text, re.M):
            self._add_variable(line)
        every = [_Body(self, *parts).function for parts in split_functions(text)]
        self.functions = [function for function in every if function.is_kernel]
        self.callees = {function.name: function for function in every if not function.is_kernel}
        for function in self.functions:
            function.calls = list(self._called_by(function, []).values())

    def _called_by(self, function: Function, callers: list[str]) -> dict[str, Function]:
        found: dict[str, Function] = {}
        for statement in function.body:
            if isinstance(statement, str) or not statement.opcode.startswith("call"):
                continue
            name = called_name(statement)
            if name not in self.callees or name in callers:
                raise Unsupported(f"line {statement.line}: {statement.text}: no function of this file, or a recursion")
            found |= self._called_by(self.callees[name], [*callers, name]) | {name: self.callees[name]}
        return found

    def _add_variable(self, line: str) -> None:
        found = re.search(r"\.([usbf]\d+)\s+([\w$]+)(?:\[(\d+)\])?\s*(=.*)?;$", line, re.DOTALL)
        if not found:
            raise Unsupported(line)
        kind, name, count, value = found.groups()
        self.variables[name] = Variable(cpp_type(kind), int(count or 1), (value or "").lstrip("= "))


def called_name(call: Statement) -> str:
    """call (result), name, (arguments)"""
    return call.operands[1 if call.operands[0].startswith("(") else 0]


def check_header(text: str) -> str:
    """The target of a PTX file."""
    version = re.search(r"^\s*\.version\s+(\S+)", text, re.M)
    target = re.search(r"^\s*\.target\s+([^\n]+)", text, re.M)
    size = re.search(r"^\s*\.address_size\s+(\d+)", text, re.M)
    if not (version and target and size):
        raise Unsupported("this is no PTX: .version, .target and .address_size are expected")
    if version[1] not in VERSIONS:
        raise Unsupported(f"PTX version {version[1]}, known are {VERSIONS[0]} to {VERSIONS[-1]}")
    name = target[1].split(",")[0].strip()
    if name not in TARGETS:
        raise Unsupported(f"target {name}, known are {', '.join(TARGETS)}")
    if size[1] != "64":
        raise Unsupported(f"addresses of {size[1]} bits")
    return name


def split_functions(text: str) -> Iterator[tuple[str, str, bool, str, str, str, int]]:
    """Kind, name, whether it is local, results, parameters, body and its first line, of each .entry and .func."""
    at = 0
    linkage = r"((?:\.visible |\.weak |\.extern )*)"
    head = linkage + r"\.(entry|func)\s*(?:\(([^)]*)\))?\s*([\w$]+)\s*\(([^)]*)\)[^{;]*\{"
    for match in re.finditer(head, text):
        linked, kind, results, name, parameters = match.groups()
        if match.start() < at:
            raise Unsupported(f"an .{kind} in another one: {name}")
        at = match.end()
        depth = 1
        while depth:
            brace = re.compile("[{}]").search(text, at)
            if not brace:
                raise Unsupported(f"the file is cut short: {name} has no end")
            depth += 1 if brace[0] == "{" else -1
            at = brace.end()
        line = text.count("\n", 0, match.end()) + 1
        yield kind, name, not linked, results or "", parameters, text[match.end() : at - 1], line
    if re.search(r"\.entry\b", text[at:]):
        raise Unsupported("the file is cut short in the head of a kernel")


class _Body:
    """Reads a function's body. What a block declares gets a name of its own."""

    TOKEN = re.compile(r"\s*(?:(\.loc\s[^\n]*)|([\w$]+):(?!:)|([{}])|((?:[^;{}]|\{[^{};]*\})*;))", re.DOTALL)

    def __init__(
        self, module: Module, kind: str, name: str, local: bool, results: str, parameters: str, body: str, line: int
    ) -> None:
        self.module = module
        self.line = line
        self.function = Function(name, local, kind == "entry")
        self.scopes: list[dict[str, str]] = [{}]
        self.scope_count = 0
        self.site = 0
        self.inlined: dict[tuple[int, ...], tuple[int, ...]] = {}
        for declaration in split_list(parameters):
            self.add_parameter(declaration)
        for declaration in split_list(results):
            result, bytes_, _ = self.parameter(declaration)
            self.function.results[result] = bytes_
        self.read(body)

    @staticmethod
    def parameter(declaration: str) -> tuple[str, int, int]:
        """Name, bytes and alignment."""
        found = re.match(r"\.param (?:\.align (\d+) )?\.(\w+) (?:\.ptr.* )?([\w$]+)(?:\[(\d+)\])?$", declaration)
        if not found:
            raise Unsupported(declaration)
        size = BYTES[cpp_type(found[2])]
        return found[3], size * int(found[4] or 1), int(found[1] or size)

    def add_parameter(self, declaration: str) -> None:
        name, bytes_, align = self.parameter(declaration)
        f = self.function
        end = sum(f.layout[-1]) if f.layout else 0
        offset = -(-end // align) * align
        f.parameters[name] = offset
        f.layout.append((offset, bytes_))

    def read(self, body: str) -> None:
        at, end = 0, len(body.rstrip())
        while at < end:
            match = self.TOKEN.match(body, at)
            if not match:
                raise Unsupported(f"line {self.line}: cannot parse {body[at : at + 80].strip()!r}")
            start = match.start(match.lastindex or 0)
            self.line += body.count("\n", at, start)
            location, label, brace, statement = match.groups()
            if location:
                self.move_to(location)
            elif label:
                self.function.body.append(label.lstrip("$"))
            elif brace == "{":
                self.scope_count += 1
                self.scopes.append({})
            elif brace:
                self.scopes.pop()
            else:
                self.add(" ".join(statement.split())[:-1].strip())
            self.line += body.count("\n", start, match.end())
            at = match.end()

    def move_to(self, text: str) -> None:
        """.loc file line column, with inlined_at the place of the call."""
        numbers = re.match(r"\.loc\s+(\d+)\s+(\d+)\s+(\d+)(?:.*inlined_at\s+(\d+)\s+(\d+)\s+(\d+))?", text)
        if not numbers:
            raise Unsupported(text)
        location = tuple(map(int, numbers.groups()[:3]))
        if numbers[4]:
            self.inlined[location] = tuple(map(int, numbers.groups()[3:]))
        else:
            self.inlined.pop(location, None)
        if not location[1]:  # line 0: code that the compiler made
            return
        frames: list[tuple[str, int]] = []
        at: tuple[int, ...] | None = location
        while at and len(frames) < MOST_FRAMES:
            frames.append((self.module.files.get(at[0], "?"), at[1]))
            at = self.inlined.get(at)
        self.site = self.module.sites.add(frames)

    def add(self, text: str) -> None:
        if not text or text.startswith(".pragma"):
            return
        if text.startswith(".reg"):
            return self.declare(text)
        if text.startswith(".param"):
            name, bytes_, _ = self.parameter(text)
            return self.function.passed.update({self.own_name(name): bytes_})
        if local := re.match(r"\.local \.align (\d+) \.b8 ([\w$]+)\[(\d+)\]$", text):
            self.function.local_bytes[local[2]] = int(local[3])
            return
        found = re.match(r"(?:@(!?%?[\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)$", text, re.DOTALL)
        if not found:
            raise Unsupported(f"line {self.line}: {text}")
        guard, *operands = [self.renamed(o) for o in (found[1] or "", *split_list(found[3]))]
        self.function.body.append(Statement(text, guard, found[2], operands, self.site, self.line))

    def declare(self, text: str) -> None:
        """.reg .b32 %r<100>, or named ones."""
        _, kind, names = text.split(None, 2)
        for declared in split_list(names):
            name = declared.split("<")[0]
            if "<" not in declared and len(self.scopes) > 1:
                name = self.own_name(declared)
            self.function.registers[name] = cpp_type(kind[1:])

    def own_name(self, declared: str) -> str:
        """What a block declares, by a name that is unique in the function."""
        name = f"%{declared.lstrip('%')}_in{self.scope_count}"
        self.scopes[-1][declared] = name
        return name

    def renamed(self, operand: str) -> str:
        for names in self.scopes[1:]:
            for name, new in names.items():
                operand = re.sub(rf"(?<![\w%$]){re.escape(name)}(?![\w$])", new, operand)
        return operand
