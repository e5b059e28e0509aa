"""Programs of torch.export: saved, loaded, then differentiated in every way, compiled, or lowered to compiled ops."""

from __future__ import annotations

import functools
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vmap

from tests.support.derivatives import CASES, Case
from xlstm_cuda.functional import lstm
from xlstm_cuda.testing import assert_close_relative, lstm_inputs

TIGHT = 1e-10  # float64
NAMES = ["mlstm options", "mlstm_step", "mlstm_step slots", "slstm options", "lstm_step", "causal_conv1d packed"]
NAMES += ["multihead_norm_gate", "headwise_linear", "gated_activation halves", "soft_cap"]
names = pytest.mark.parametrize("name", NAMES)
MARK = "xlstm_cuda::differentiable_"


class Around(nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self.case.call(*tensors)


def saved_and_loaded(program: Any) -> Any:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


@functools.cache
def exported(name: str) -> tuple[Case, Any]:
    """A case and its program, recorded without gradients: they are decided where it runs."""
    case = CASES[name]()
    with torch.no_grad():
        return case, saved_and_loaded(torch.export.export(Around(case), tuple(case.tensors)))


def of_program(case: Case, program: Any) -> Case:
    module = program.module()
    return case._replace(call=lambda *tensors, backend=None: module(*tensors))


def ops_of(program: Any) -> set[str]:
    names = (node.target.name() for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload))
    return {name for name in names if name.startswith("xlstm_cuda::")}


def same(actual: Any, expected: Any) -> None:
    for index, (a, b) in enumerate(zip(*map(torch.utils._pytree.tree_leaves, (actual, expected)), strict=True)):
        assert_close_relative(a, b, TIGHT, f"result {index}")


def second(case: Case) -> tuple[Tensor, ...]:
    """First gradients, and those of a function of these."""
    tensors = [x.clone().requires_grad_() for x in case.tensors]
    first = torch.autograd.grad(case.loss(*tensors), tensors, create_graph=True)
    penalty = torch.stack([g.sin().sum() for g in first]).sum()
    return *first, *torch.autograd.grad(penalty, tensors, materialize_grads=True)


@names
def test_programs_are_differentiated(name: str) -> None:
    case, program = exported(name)
    ours, (x, *rest) = of_program(case, program), case.tensors
    same(ours.call(*case.tensors), case.call(*case.tensors))
    same(second(ours), second(case))
    for transform in (
        lambda loss: vmap(loss)(torch.stack([x, 0.9 * x])),
        lambda loss: vmap(grad(loss))(torch.stack([x, 0.9 * x])),
        lambda loss: jvp(grad(loss), (x,), (x.cos(),)),
    ):
        same(*(transform(lambda x: each.loss(x, *rest)) for each in (ours, case)))  # noqa: B023


@names
def test_lowered_programs_hold_compiled_ops(name: str) -> None:
    case, program = exported(name)
    lowered = saved_and_loaded(program.run_decompositions())
    assert any(op.startswith(MARK) for op in ops_of(program))
    assert ops_of(lowered) and not any(op.startswith(MARK) for op in ops_of(lowered))
    with torch.no_grad():
        same(lowered.module()(*case.tensors), case.call(*case.tensors))


def test_every_such_op_is_tried() -> None:
    tried = set.union(*(ops_of(exported(name)[1]) for name in NAMES))
    assert {op for op in torch._C._dispatch_get_all_op_names() if op.startswith(MARK)} <= tried


@pytest.mark.parametrize("name", ["mlstm options", "causal_conv1d packed"])
def test_programs_are_compiled(name: str) -> None:
    case, program = exported(name)
    torch._dynamo.reset()
    compiled = torch.compile(program.module(), backend="aot_eager", fullgraph=True)
    results = []
    for call in (compiled, lambda *tensors: case.call(*tensors)):
        tensors = [x.clone().requires_grad_() for x in case.tensors]
        outputs = call(*tensors)
        loss = torch.stack([y.square().sum() for y in outputs]).sum()
        results.append((outputs, torch.autograd.grad(loss, tensors)))
    same(*results)


@pytest.mark.parametrize("strict", [True, False])
def test_strides_of_another_call(strict: bool) -> None:
    """What the kernels want of strides is seen to where the program runs."""

    class Model(nn.Module):
        def forward(self, x: Tensor, R: Tensor) -> Any:
            return lstm(x, R)

    inputs = lstm_inputs(2, 3, 2, 4)
    x, R = inputs["x"], inputs["R"]
    program = torch.export.export(Model(), (x, R), strict=strict).module()
    apart = torch.stack([x, x], -1)[..., 0]
    assert apart.stride(-1) == 2
    assert torch.equal(program(apart, R), lstm(x, R))
