"""Whether an implementation computes the op, or what it claims to: outputs and gradients against float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xlstm_cuda.testing import cast, relative_error, tolerance_of

from .calls import Builder, Call, Claim
from .cases import DTYPES, Case
from .ops import OPS, Op, Outputs, Shape, Tensors

MAX_FLOPS, MAX_BYTES, MAX_SWEEP = 2e11, 2**29, 2**36  # of a float64 reference call
MANY_TOKENS, FEW_TOKENS = 1024, 128  # several chunks of any implementation; one of most

Runner = Callable[[], tuple[Outputs, tuple[Tensor, ...]]]


class WrongResult(Exception):
    """An implementation does not compute what it has to. errors: the relative ones by name."""

    def __init__(self, reason: str, errors: dict[str, float]) -> None:
        super().__init__(reason)
        self.errors = errors


def affordable(op: Op, shape: Shape, mode: str) -> Shape:
    """The shape, or where the float64 reference would be too large, the same with fewer tokens and rows.

    Rows go before the last tokens: a check has to cross the borders of chunks.
    """
    shape = {key: min(size, op.checked.get(key, size)) for key, size in shape.items()}
    while _too_large(op, shape, mode):
        if shape.get("S", 0) > MANY_TOKENS:
            shape["S"] //= 2
        elif shape["B"] > 1:
            shape["B"] //= 2
        elif shape.get("S", 0) > FEW_TOKENS:
            shape["S"] //= 2
        else:
            break
    return shape


def _too_large(op: Op, shape: Shape, mode: str) -> bool:
    size = op.bytes(shape, mode, torch.float64)
    # autograd of the token-by-token cells (those with D) adds up a gradient as large as x for every token
    sweep = size * shape.get("S", 1) if mode == "fwdbwd" and "D" in shape else 0
    return op.work(shape, mode) > MAX_FLOPS or size > MAX_BYTES or sweep > MAX_SWEEP


def copies(tensors: Tensors, mode: str) -> Tensors:
    """Private leaves, requiring grad in mode fwdbwd if they are not integers."""
    wanted = mode == "fwdbwd"
    return {name: x.detach().clone().requires_grad_(wanted and x.is_floating_point()) for name, x in tensors.items()}


def runner(call: Call, mode: str) -> Runner:
    """One call as it is timed: outputs, and in mode fwdbwd the gradients of a random linear function of the first."""
    leaves = tuple(call.leaves.values())

    def forward() -> tuple[Outputs, tuple[Tensor, ...]]:
        with torch.no_grad():
            return call.run(), ()

    if mode != "fwdbwd" or not leaves:
        return forward
    h = call.run()[0].detach()  # with gradients, as they are timed: a compiled function is another one without
    generator = torch.Generator(h.device).manual_seed(2)
    # in the layout of h: no implementation has to bring it into its own
    dh = torch.empty_like(h).copy_(torch.randn(h.shape, generator=generator, device=h.device))

    def backward() -> tuple[Outputs, tuple[Tensor, ...]]:
        outputs = call.run()
        return outputs, torch.autograd.grad(outputs, leaves, dh)

    return backward


class Checker:
    """The float64 results of one case, each function's computed once, and the comparison with them."""

    def __init__(self, case: Case) -> None:
        self.case, self.op = case, OPS[case.op]
        self.shape = affordable(self.op, case.shape, case.mode)
        self.inputs = self.op.draw(self.shape, DTYPES[case.dtype], case.device)
        self._expected: dict[Claim | None, Tensors] = {}

    def errors(self, builder: Builder, claim: Claim | None = None) -> dict[str, float]:
        """Relative errors by name ("h", "df"). Raises WrongResult where one exceeds the tolerance of the dtype.

        claim: what is computed, None for the op.
        """
        expected = self._expected_of(claim)
        actual, dtype = self._results(builder(copies(self.inputs, self.case.mode))), DTYPES[self.case.dtype]
        errors = {name: relative_error(actual[name], x) for name, x in expected.items()}
        depth = self.op.depth(self.shape)
        allowed = {name: depth * _tolerance(name, self.case.op, dtype, self.case.device) for name in errors}
        wrong = [
            f"{name} {e:.1e} (allowed {allowed[name]:.0e})" for name, e in errors.items() if not e <= allowed[name]
        ]
        if wrong:
            raise WrongResult(f"relative error of {', '.join(wrong)} against float64", errors)
        first = self.op.outputs[0]
        if actual[first].is_floating_point() and actual[first].dtype != dtype:
            raise WrongResult(f"{first} has dtype {actual[first].dtype}, expected {dtype}", errors)
        return errors

    def _expected_of(self, claim: Claim | None) -> Tensors:
        if claim not in self._expected:
            wide = copies(cast(self.inputs), self.case.mode)
            oracle = self.op.oracle if claim is None else claim.oracle
            names = wide if claim is None else claim.leaves
            leaves = {name: wide[name] for name in names if wide[name].is_floating_point()}
            self._expected[claim] = self._results(Call(lambda: oracle(wide), leaves))
        return self._expected[claim]

    def _results(self, call: Call) -> Tensors:
        outputs, gradients = runner(call, self.case.mode)()
        results = dict(zip(self.op.outputs, outputs, strict=True))
        for name, gradient in zip(call.leaves, gradients, strict=bool(gradients)):
            results[f"d{name}"] = call.canonical.get(name, lambda x: x)(gradient)
        return results


def _tolerance(name: str, op: str, dtype: torch.dtype, device: str) -> float:
    tolerance = tolerance_of(op, dtype, device)
    if name == "df":
        return tolerance.df
    return tolerance.grad if name.startswith("d") else tolerance.h
