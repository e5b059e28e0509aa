"""Random calls of the public functions and of the raw ops, right ones and wrong ones.

`python tests/tools/fuzz.py --seconds 60`. Nothing may crash. Whatever raises is one of ERRORS and names the function
or the op. What a right call returns is, within the dtype's bound, what the reference computes in float64 from the same
inputs. Each call is drawn from its own number, which is printed where it fails: with `--first NUMBER --calls 1` it is
made again. `make test-asan` makes such calls on an extension with AddressSanitizer and UndefinedBehaviorSanitizer.
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import re
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import xlstm_cuda
from xlstm_cuda import LSTMState, MLSTMState, SLSTMState, _ops
from xlstm_cuda.testing import TOLERANCE, cast, relative_error

ERRORS = (TypeError, ValueError, RuntimeError, NotImplementedError)
DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64)
SEQUENCES = ("mlstm", "slstm", "lstm")
STEPS = ("mlstm_step", "slstm_step", "lstm_step", "causal_conv1d_step")
ELEMENTWISE = ("gated_activation", "soft_cap")
FUNCTIONS = (*SEQUENCES, *STEPS, "causal_conv1d", "multihead_norm_gate", "headwise_linear", *ELEMENTWISE)
MEMORY = "allocate|out of memory|bad_alloc"  # an allocation that failed


class Call(NamedTuple):
    """arguments: by name, in the order of the signature; tame: the reference must agree."""

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]
    tame: bool


class Draw:
    """Inputs of right calls. All values are positive: no sum cancels, and relative errors stay those of rounding."""

    def __init__(self, number: int) -> None:
        self.random = random.Random(number)
        self.generator = torch.Generator().manual_seed(number)
        self.dtype = self.random.choice(DTYPES)
        self.wide = torch.promote_types(self.dtype, torch.float32)
        pick = self.random.choice
        self.B, self.H, self.S = pick((0, 1, 1, 2, 3)), pick((1, 1, 2, 3)), pick((0, 1, 2, 5, 16, 17, 40))
        self.D, self.Dv = pick((1, 2, 3, 8, 17, 32)), pick((1, 3, 4, 16, 33))

    def often(self, part: float) -> bool:
        return self.random.random() < part

    def positive(self, *shape: int, dtype: torch.dtype | None = None, top: float = 1.0) -> Tensor:
        x = torch.rand(shape, generator=self.generator, dtype=torch.float64) * top + top / 16
        return self.laid_out(x.to(dtype or self.dtype))

    def gate(self, *shape: int) -> Tensor:
        return self.positive(*shape, dtype=self.random.choice((self.dtype, self.wide)), top=4.0) - 1

    def laid_out(self, x: Tensor) -> Tensor:
        """The same values in another layout."""
        kind = self.random.randrange(6)
        if kind == 0 and x.ndim > 1:
            a, b = self.random.sample(range(x.ndim), 2)
            return x.transpose(a, b).contiguous().transpose(a, b)
        if kind == 1 and x.ndim:
            return x.unsqueeze(-1).expand(*x.shape, 3).contiguous()[..., 1]
        if kind == 2:
            return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
        return x

    def mlstm(self, step: bool) -> dict[str, Any]:
        B, H, S = self.B, self.H, min(self.S, 16) if step else self.S
        one = step and self.often(0.6)
        lead = (B, H) if one else (B, H, S)
        arguments: dict[str, Any] = {name: self.positive(*lead, self.D) for name in "qk"}
        arguments |= {"v": self.positive(*lead, self.Dv), "i": self.gate(*lead), "f": self.gate(*lead)}
        rows = B
        if step:
            arguments["state"] = self.often(0.8) and self.mlstm_state(rows) or None
            arguments["inplace"] = arguments["state"] is not None and self.often(0.5)
            if arguments["state"] is not None and self.often(0.3):
                rows = B + 2
                arguments["state"] = self.mlstm_state(rows)
                arguments["slots"] = torch.randperm(rows, generator=self.generator)[:B].int()
            if arguments["inplace"]:
                arguments["state"] = MLSTMState(*(s.to(self.wide).contiguous() for s in arguments["state"]))
        else:
            if B == 1 and self.often(0.4):
                inner = sorted(self.random.choices(range(S + 1), k=self.random.randrange(3)))
                arguments["cu_seqlens"] = torch.tensor([0, *inner, S], dtype=torch.int32)
                rows = len(inner) + 1
            arguments["initial_state"] = self.mlstm_state(rows) if self.often(0.5) else None
            arguments["reset"] = self.flags(B, S)
            arguments["chunk_size"] = self.random.choice((None, None, 1, 7, 64))
            arguments["norm_grad"] = self.often(0.8)
        if self.often(0.3):
            arguments |= {"input_gate": "sigmoid", "normalize": self.often(0.5)}
        if self.often(0.3):
            arguments |= {"scale": self.random.choice((0.3, 1, 2.0)), "eps": self.random.choice((0.0, 1e-6, 0.1))}
        return arguments

    def mlstm_state(self, rows: int) -> MLSTMState:
        dtype = self.random.choice((self.dtype, self.wide))
        shape = rows, self.H
        C, n = self.positive(*shape, self.D, self.Dv, dtype=dtype), self.positive(*shape, self.D, dtype=dtype)
        return MLSTMState(C, n, self.positive(*shape, dtype=dtype))

    def cell(self, cls: type, step: bool) -> dict[str, Any]:
        B, S, H, D = self.B, min(self.S, 17), self.H, self.D
        arguments: dict[str, Any] = {"x": self.positive(*((B,) if step else (B, S)), 4, H, D)}
        R = self.positive(4, H, D, D, top=1 / D)
        arguments |= {"R": R.mT.contiguous().mT if self.often(0.3) else R}
        arguments["b"] = self.positive(4, H, D, dtype=self.wide) if step or self.often(0.7) else None
        state = cls(*(self.positive(B, H, D, dtype=self.random.choice((self.dtype, self.wide))) for _ in cls._fields))  # type: ignore[attr-defined]
        state = state._replace(h=state.h.to(self.dtype).to(state.h.dtype))
        arguments["state" if step else "initial_state"] = state if self.often(0.6) else None
        if not step:
            lengths = torch.tensor([self.random.randint(0, S) for _ in range(B)], dtype=torch.int64)
            arguments |= {"lengths": lengths if self.often(0.3) else None, "reset": self.flags(B, S)}
            arguments["reversed_heads"] = self.random.choice((0, 0, self.random.randint(0, H)))
        if cls is SLSTMState and self.often(0.3):
            arguments["forget_gate"] = "exp"
        return arguments

    def conv(self, step: bool) -> dict[str, Any]:
        B, S, F, K = self.B, min(self.S, 16) if step else self.S, self.D, self.random.choice((1, 2, 4, 4, 7))
        lead = (B,) if step and self.often(0.6) else (B, S)
        arguments: dict[str, Any] = {"x": self.positive(*lead, F), "weight": self.positive(F, K)}
        arguments["bias"] = self.positive(F, dtype=self.wide) if step or self.often(0.7) else None
        arguments["activation"] = self.random.choice((None, "silu"))
        rows = B
        if step:
            arguments["inplace"] = self.often(0.5)
        else:
            arguments["reset"] = self.flags(B, S)
            if B == 1 and self.often(0.4):
                inner = sorted(self.random.choices(range(S + 1), k=self.random.randrange(3)))
                arguments["cu_seqlens"] = torch.tensor([0, *inner, S], dtype=torch.int32)
                rows = len(inner) + 1
        state = self.positive(rows, K - 1, F)
        if step and arguments["inplace"]:
            state = state.contiguous()
        arguments["state" if step else "initial_state"] = state if self.often(0.6) else None
        return arguments

    def norm_gate(self) -> dict[str, Any]:
        """With a mean, eps keeps the differences from it away from those of rounding."""
        B, S, H, D = self.B, self.S, self.H, self.D
        arguments: dict[str, Any] = {"h": self.positive(B, S, H, D), "norm": self.random.choice(("layer", "rms"))}
        arguments |= {"gate_activation": self.random.choice(("silu", "sigmoid")), "weight_offset": 1.0, "eps": 1.0}
        for name in ("weight", "bias", "skip_weight"):
            arguments[name] = self.positive(H * D, dtype=self.random.choice((self.dtype, self.wide)))
        for name in ("gate", "skip"):
            arguments[name] = self.positive(B, S, H * D) if self.often(0.7) else None
        if arguments["skip"] is None:
            arguments["skip_weight"] = None
        return arguments

    def headwise(self) -> dict[str, Any]:
        N, D, out = self.H, self.D, self.Dv
        lead = self.random.choice(((), (self.S,), (self.B, self.S), (self.B, 2, self.S)))
        arguments: dict[str, Any] = {"x": self.positive(*lead, N * D), "weight": self.positive(N, out, D)}
        bias = self.positive(N * out, dtype=self.random.choice((self.dtype, self.wide)))
        return arguments | {"bias": bias if self.often(0.5) else None}

    def gated(self) -> dict[str, Any]:
        """With a gate, or both in one; the values are positive."""
        lead = self.random.choice(((), (self.S,), (self.B, self.S), (self.B, 2, self.S)))
        fused = self.often(0.5)
        arguments: dict[str, Any] = {"x": self.positive(*lead, self.D * (1 + fused))}
        arguments["gate"] = None if fused else self.positive(*lead, self.D)
        return arguments | {"activation": self.random.choice(list(_ops.ACTIVATIONS))}

    def capped(self) -> dict[str, Any]:
        lead = self.random.choice(((), (self.D,), (self.B, self.S, self.D)))
        return {"x": self.positive(*lead), "cap": self.random.choice((0.5, 3, 30.0))}

    def flags(self, B: int, S: int) -> Tensor | None:
        return torch.rand(B, S, generator=self.generator).lt(0.2) if self.often(0.3) else None

    def function(self, name: str) -> dict[str, Any]:
        """Arguments of a right call."""
        step = name.endswith("_step")
        if name.startswith("mlstm"):
            arguments = self.mlstm(step)
        elif name.startswith("causal"):
            arguments = self.conv(step)
        elif name == "multihead_norm_gate":
            return self.norm_gate()
        elif name == "headwise_linear":
            return self.headwise()
        elif name == "gated_activation":
            return self.gated()
        elif name == "soft_cap":
            return self.capped()
        else:
            arguments = self.cell(SLSTMState if name.startswith("slstm") else LSTMState, step)
        if not step:
            arguments["return_state"] = True
        return arguments


# Raw ops. Their arguments are those of a right call of a function, as the schema names them.


def raw(draw: Draw) -> Call:
    name = draw.random.choice(sorted(_ops._FAKES))
    op = getattr(torch.ops.xlstm_cuda, name).default
    families = {"ml": mlstm_values, "mu": norm_values, "ca": conv_values, "re": recurrent_values, "he": headwise_values}
    families |= {"ga": gated_values, "so": cap_values}
    make = families[name[:2]]
    values = make(draw, name)
    arguments = {argument.name: values.get(argument.name) for argument in op._schema.arguments}
    return Call(name, lambda **named: op(*named.values()), arguments, False)


def mlstm_values(draw: Draw, name: str) -> dict[str, Any]:
    step = "step" in name
    values = draw.mlstm(step)
    C, n, m = values.get("state") or draw.mlstm_state(draw.B)
    start = values.get("initial_state") or (None, None, None)
    lead = values["q"].shape[:-1]
    values |= dict(zip(("C0", "n0", "m0"), start, strict=True)) | {"C": C, "n": n, "m": m}
    values |= {"sigmoid_gate": "input_gate" in values, "normalize": values.get("normalize", True), "scale": 0.5}
    values |= {"eps": 1e-6, "chunk_size": values.get("chunk_size") or 0, "allow_tf32": False}
    values |= {"dh": draw.positive(*lead, draw.Dv), "h": draw.positive(*lead, draw.Dv)}
    return values | {"r": draw.positive(*lead, dtype=draw.wide), "dC": C, "dn": n, "dm": m}


def conv_values(draw: Draw, name: str) -> dict[str, Any]:
    step = "step" in name
    values = draw.conv(step)
    x, weight = values["x"], values["weight"]
    rows = x.shape[0] if values.get("cu_seqlens") is None else values["cu_seqlens"].shape[0] - 1
    state = draw.positive(rows, weight.shape[1] - 1, x.shape[-1])
    values |= {"state": state.contiguous(), "dnext_state": draw.random.choice((None, state))}
    return values | {"dy": draw.positive(*x.shape), "silu": values["activation"] == "silu"}


def norm_values(draw: Draw, name: str) -> dict[str, Any]:
    values = draw.norm_gate()
    B, S, H, D = values["h"].shape
    rms, sigmoid = values["norm"] == "rms", values["gate_activation"] == "sigmoid"
    return values | {"dy": draw.positive(B, S, H * D), "rms": rms, "sigmoid": sigmoid}


def headwise_values(draw: Draw, name: str) -> dict[str, Any]:
    """Of one map, or of two; the ops take no blocks of more than 16 features."""
    N, D, two = draw.H, min(draw.D, 16), draw.often(0.5)
    outs = [min(draw.Dv, 16), draw.random.choice((1, 4, 7))]
    values: dict[str, Any] = {"x": draw.positive(draw.B, draw.S, N * D)}
    for n, out in enumerate(outs[: 1 + two]):
        values |= {f"weight{n}": draw.positive(N, out, D), f"dy{n}": draw.positive(draw.B, draw.S, N * out)}
        values[f"bias{n}"] = draw.positive(N * out) if draw.often(0.5) else None
    return values


def gated_values(draw: Draw, name: str) -> dict[str, Any]:
    values = draw.gated()
    B, S, F = draw.B, draw.S, draw.D
    if values["gate"] is None:
        values["x"] = draw.positive(B, S, 2 * F)
    else:
        values |= {"x": draw.positive(B, S, F), "gate": draw.positive(B, S, F)}
    return values | {"dy": draw.positive(B, S, F), "activation": _ops.ACTIVATIONS[values["activation"]]}


def cap_values(draw: Draw, name: str) -> dict[str, Any]:
    shape = draw.B, draw.S, draw.D
    return {"x": draw.positive(*shape), "dy": draw.positive(*shape), "cap": draw.random.choice((0.5, 30.0))}


def recurrent_values(draw: Draw, name: str) -> dict[str, Any]:
    cell = draw.random.choice(list(_ops.CELLS))
    cls: type = LSTMState if cell == "lstm" else SLSTMState
    values = draw.cell(cls, "step" in name)
    B, H, D, S = draw.B, draw.H, draw.D, values["x"].shape[1]
    state = (*(values.get("initial_state") or [None] * 4), None, None)[:4]
    full = {part: draw.positive(B, H, D, dtype=draw.wide) for part in "hcnm"}
    h = draw.positive(B, H, D) if "step" in name else draw.positive(B, S, H, D)
    values |= {f"{part}0": s for part, s in zip("hcnm", state, strict=True)} | full | {"h": h, "dh": h}
    values |= {"cT": full["c"], "nT": full["n"], "saved": draw.positive(B, S, 5, H, D, dtype=draw.wide)}
    values |= {f"d{part}T": full[part] if draw.often(0.5) else None for part in "hcnm"}
    return values | {"cell": _ops.CELLS[cell], "allow_tf32": False, "save": draw.often(0.5), "reversed_heads": 0}


# Wrong calls.

WILD: tuple[Any, ...] = (
    *(None, True, 0, 1, -1, 2**31, 2**62, 2**70, 10**400, 0.5, -2.5, float("nan"), float("inf"), "exp", "no", "", b"x"),
    *([], (), [1.0], {}, {"a": 1}, object(), 1j, torch.float32, slice(None), print),
)


def wild_tensor(draw: Draw, x: Tensor, is_raw: bool) -> Any:
    """x changed in dtype, shape, strides, layout, device or values."""
    pick = draw.random.choice
    dtype = pick((torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool, torch.complex64))
    dim = draw.random.randrange(x.ndim) if x.ndim else 0
    huge = pick((2**20, 2**31, 2**40, 2**60))
    changes: list[Callable[[], Any]] = [
        lambda: x.to(dtype),
        lambda: x.to(torch.uint8),
        lambda: x.unsqueeze(dim),
        lambda: x.flatten(),
        lambda: x.select(dim, 0),
        lambda: x.narrow(dim, 0, max(0, x.shape[dim] - 1)),
        lambda: torch.cat([x, x], dim),
        lambda: x.transpose(dim, draw.random.randrange(x.ndim)),
        lambda: x.narrow(dim, 0, 0),
        lambda: x.narrow(dim, 0, 1).expand(*x.shape[:dim], pick((2, 5, x.shape[dim])), *x.shape[dim + 1 :]),
        lambda: x[:0].narrow(-1, 0, 1).expand(*x[:0].shape[:-1], huge),
        lambda: x if is_raw else x.to("meta"),  # an op's fake kernel trusts its arguments
        lambda: torch.nn.Parameter(x) if x.is_floating_point() else x,
        lambda: x.clone().requires_grad_(),
        lambda: x.as_strided(x.shape, [pick((0, 1, 2, 5)) for _ in x.shape]) if x.numel() < 2 else x.mT,
        lambda: x.fill_(pick((float("nan"), float("inf"), -float("inf"), -1e30, 1e38))),
        lambda: x.neg(),
        lambda: torch._neg_view(x) if x.is_floating_point() and not is_raw else x,
        lambda: x.numpy() if x.dtype != torch.bfloat16 else x,
        lambda: x.tolist(),
        lambda: x if is_raw else x.to_sparse(),
        lambda: x if is_raw else torch.nested.nested_tensor([x, x]),
        lambda: torch.zeros(()),
        lambda: torch.zeros(0),
    ]
    try:
        return pick(changes)()
    except (RuntimeError, IndexError, TypeError, ValueError, NotImplementedError):  # not of this tensor
        return pick(WILD)


def wild_state(draw: Draw, state: Any, is_raw: bool) -> Any:
    parts = list(state)
    where = draw.random.randrange(len(parts))
    changes: list[Callable[[], Any]] = [
        lambda: type(state)(*parts[:where], wild_tensor(draw, parts[where], is_raw), *parts[where + 1 :]),
        lambda: type(state)(*parts[:where], draw.random.choice(parts), *parts[where + 1 :]),
        lambda: tuple(parts),
        lambda: parts[:-1],
        lambda: parts[where],
        lambda: iter(parts),
        lambda: draw.random.choice(WILD),
    ]
    return draw.random.choice(changes)()


def spoilt(draw: Draw, call: Call) -> Call:
    """The call with up to three arguments changed."""
    arguments, is_raw = dict(call.arguments), call.name in _ops._FAKES and not call.tame
    for name in draw.random.sample(sorted(arguments), min(len(arguments), draw.random.randint(1, 3))):
        value = arguments[name]
        if isinstance(value, tuple):
            arguments[name] = wild_state(draw, value, is_raw)
        elif isinstance(value, Tensor) and draw.often(0.9):
            arguments[name] = wild_tensor(draw, value, is_raw)
        else:
            arguments[name] = draw.random.choice(WILD)
    return call._replace(arguments=arguments, tame=False)


def empty_and_huge(draw: Draw) -> Call:
    """A call that is right but for its sizes: no tokens, and other sizes that memory could not hold."""
    name = draw.random.choice(FUNCTIONS)
    draw.B, draw.S, draw.H, draw.D, draw.Dv = 1, 1, 1, 1, 1
    sizes = {"B": 0, "S": 3, "H": 2**20, "D": 2 ** draw.random.choice((20, 24, 29))}

    def grown(x: Any) -> Any:
        return x[:0].expand(0, *(sizes["D"] if d == x.ndim - 1 else size for d, size in enumerate(x.shape) if d))

    arguments = draw.function(name)
    if name == "gated_activation":
        arguments |= {"x": torch.zeros(0, 3, 1), "gate": torch.zeros(0, 3, 1)}
    for key, value in arguments.items():
        if isinstance(value, tuple):
            arguments[key] = type(value)(*map(grown, value))
        elif isinstance(value, Tensor) and value.ndim > 1 and key not in ("R", "b", "weight", "cu_seqlens"):
            arguments[key] = grown(value)
    if "R" in arguments:
        arguments["R"] = arguments["R"].expand(4, 1, sizes["D"], sizes["D"])
        arguments["b"] = None
    if name == "multihead_norm_gate":
        arguments |= dict.fromkeys(("weight", "bias", "skip_weight"))
    elif name == "headwise_linear":
        arguments |= {"x": torch.zeros(0, 3, 2**20), "weight": torch.zeros(1, 1, 1).expand(2**20, 1, 1), "bias": None}
    elif "weight" in arguments:
        arguments["weight"] = arguments["weight"].expand(sizes["D"], arguments["weight"].shape[1])
        arguments["bias"] = None
    return Call(name, getattr(xlstm_cuda, name), arguments, False)


def drawn(number: int) -> Call:
    draw = Draw(number)
    kind = draw.random.random()
    if kind < 0.05:
        return empty_and_huge(draw)
    if kind < 0.4:
        call = raw(draw)
    else:
        name = draw.random.choice(FUNCTIONS)
        call = Call(name, getattr(xlstm_cuda, name), draw.function(name), True)
    return spoilt(draw, call) if draw.often(0.6) else call


# Verdicts.


def verdict(call: Call) -> str:
    """Makes the call; "refused" or "accepted". Raises AssertionError where that was wrong."""
    expected = in_float64(call) if call.tame else None
    try:
        results = call.function(**call.arguments)
    except Exception as error:
        assert not call.tame, f"a right call raised {type(error).__name__}: {error}"
        assert isinstance(error, ERRORS), f"raised {type(error).__name__}: {error}"
        family = next(
            (
                name
                for name in ("mlstm", "causal_conv1d", "multihead_norm_gate", "headwise_linear", *ELEMENTWISE)
                if call.name.startswith(name)
            ),
            "recurrent",
        )
        names = f"{call.name}|{family}|xlstm_cuda|{MEMORY}"
        assert re.search(names, str(error), re.IGNORECASE), f"the error does not name the call: {error!r}"
        return "refused"
    if expected is not None:
        compare(results, expected, call)
    return "accepted"


def in_float64(call: Call) -> list[Tensor]:
    tensors = {"q", "k", "v", "i", "f", "x", "R", "b", "weight", "bias", "state", "initial_state"}
    tensors |= {"h", "gate", "skip", "skip_weight"}
    wide = cast({name: x for name, x in call.arguments.items() if name in tensors})
    arguments = {**call.arguments, **wide, "backend": "reference"}
    if arguments.get("inplace"):
        arguments["inplace"] = False
    results = call.function(**arguments)
    return [results] if isinstance(results, Tensor) else [results[0], *parts(results[1])]


def parts(state: Any) -> tuple[Tensor, ...]:
    return (state,) if isinstance(state, Tensor) else state


def compare(results: Any, expected: list[Tensor], call: Call) -> None:
    h, state = (results, ()) if isinstance(results, Tensor) else results
    data = next(call.arguments[name] for name in ("q", "x", "h") if name in call.arguments)
    names = getattr(state, "_fields", ("state",) if isinstance(state, Tensor) else ())
    for name, actual, right in zip(("h", *names), (h, *parts(state)), expected, strict=True):
        assert actual.shape == right.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(right.shape)}"
        error = relative_error(actual, right)
        assert error <= bound(data.dtype), f"{name}: relative error {error:.1e} in {data.dtype}"


def bound(dtype: torch.dtype) -> float:
    """Of the relative error of one number.

    A result in 16 bits is rounded once, by at most half an eps. In the recurrent cells so is each h before it. The
    gates see that through rows of R whose sums are near 1 and pass it on, to c by way of i, z and f, and to h by way of
    o, each at most as large as it came.
    """
    return max(TOLERANCE[dtype].h, 4 * torch.finfo(dtype).eps)


def described(x: Any) -> str:
    if isinstance(x, Tensor) and x.layout == torch.strided and not x.is_nested:
        return f"{x.dtype} {tuple(x.shape)} strides {x.stride()} {x.device}"
    if isinstance(x, tuple):
        return f"{type(x).__name__}({', '.join(map(described, x))})"
    return f"{type(x).__name__} {x!r:.60}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="after which no further call is drawn")
    parser.add_argument("--calls", type=int, default=sys.maxsize, help="at most so many calls")
    parser.add_argument("--first", type=int, default=None, help="number of the first call; default: by the clock")
    options = parser.parse_args()
    faulthandler.enable()
    warnings.simplefilter("ignore")
    first = int(time.time()) * 1000 if options.first is None else options.first
    print(f"calls from number {first} on, {xlstm_cuda.__file__}", flush=True)
    counts: Counter[tuple[str, str]] = Counter()
    end, number = time.monotonic() + options.seconds, first
    while number - first < options.calls and (number == first or time.monotonic() < end):
        call = drawn(number)
        try:
            counts[call.name, verdict(call)] += 1
        except Exception:
            traceback.print_exc()
            lines = (f"{name}: {described(x)}" for name, x in call.arguments.items())
            print(f"\ncall {number}: {call.name}", *lines, sep="\n  ")
            return 1
        number += 1
    for (name, result), count in sorted(counts.items()):
        print(f"{name:16} {result} {count}")
    print(f"{number - first} calls")
    return 0


if __name__ == "__main__":
    sys.exit(main())
