"""What an implementation is: how to call it for each op it has, and where it cannot be used.

A builder takes the op's tensors (its own copies, requiring grad where gradients are wanted) and returns a Call. What it
does before returning, such as bringing weights into another layout, is not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from .ops import Op, Outputs, Shape, Tensors


@dataclass(frozen=True)
class Call:
    run: Callable[[], Outputs]  # the op's outputs, in the op's shapes
    leaves: Tensors  # what gradients are taken for, by the op's names
    canonical: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)  # a leaf's layout to the op's
    nbytes: int | None = None  # of inputs and outputs, where they are not the op's: a state kept in 16 bits


Builder = Callable[[Tensors], Call]


def _never(*_: Any) -> None:
    return None


def _nothing_to_choose(*_: Any) -> Mapping[str, Builder]:
    return {}


@dataclass(frozen=True)
class Claim:
    """Another function than the op, which an implementation computes, and the reference of that function."""

    note: str  # for the reader
    oracle: Callable[[Tensors], Outputs]  # on float64 inputs, with the op's outputs
    leaves: tuple[str, ...]  # the inputs that it depends on
    only_gradients: bool = False  # the outputs are the op's


@dataclass(frozen=True)
class Implementation:
    name: str
    builders: Mapping[str, Builder]  # by op
    devices: tuple[str, ...] = ("cpu", "cuda")
    missing: Callable[[], str | None] = _never  # why it cannot be used here, None if it can
    refuses: Callable[[str, Shape], str | None] = _never  # why it has no (op, shape)
    choices: Callable[[str, Shape, str], Mapping[str, Builder]] = _nothing_to_choose  # see ways
    claims: Mapping[str, Claim] = field(default_factory=dict)  # by op, where it does not compute the op
    peer: bool = False  # not this library's: a wrong result is reported, and is no error of ours

    def why_not(self, op: Op, shape: Shape, device: str) -> str | None:
        """Why it cannot run this here, or None."""
        if op.name not in self.builders:
            return f"has no {op.name}"
        if device not in self.devices:
            return f"does not run on {device}"
        return self.missing() or self.refuses(op.name, shape)

    def ways(self, op: str, shape: Shape, mode: str) -> Mapping[str, Builder]:
        """Builders by a note for the reader; where there are several, the fastest stands for the implementation."""
        return self.choices(op, shape, mode) or {"": self.builders[op]}

    def claim(self, op: str, mode: str) -> Claim | None:
        """None where it has to compute the op."""
        claim = self.claims.get(op)
        return None if claim is None or (claim.only_gradients and mode != "fwdbwd") else claim


def peer(name: str, builders: Mapping[str, Builder], *packages: str, **more: Any) -> Implementation:
    """Another library's, where these packages are installed; more: fields of Implementation."""
    return Implementation(name, builders, missing=partial(without, *packages), peer=True, **more)


def without(*packages: str) -> str | None:
    """The first of them that is missing, as a reason."""
    missing = next((package for package in packages if not find_spec(package)), None)
    return f"needs the package {missing}, which is not installed" if missing else None
