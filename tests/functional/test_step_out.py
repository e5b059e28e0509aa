"""mlstm_step(out=...): the new state goes to given tensors, and what was there before does not matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.functional.test_inplace import DQK, DV, B, H, both_paths, copied, tokens
from xlstm_cuda import MLSTMState, mlstm_step


def buffers(apart: bool = False, **options: Any) -> MLSTMState:
    """A state full of NaN; with `apart` the rows of each tensor have one element of something else between them."""
    shapes = (B, H, DQK, DV + apart), (B, H, DQK + apart), (B, H + apart)
    C, n, m = (torch.full(shape, torch.nan, **options) for shape in shapes)
    return MLSTMState(C[..., :DV], n[..., :DQK], m[..., :H])


def assert_same(h: Tensor, state: MLSTMState, expected: tuple[Tensor, MLSTMState]) -> None:
    assert torch.equal(h, expected[0])
    assert all(torch.equal(a, b) for a, b in zip(state, expected[1], strict=True))


@both_paths
@pytest.mark.parametrize("apart", [False, True])
def test_the_new_state_is_in_out(backend: str, device: str, apart: bool, eps: float) -> None:
    inputs, out = tokens(device=device), buffers(apart, device=device)
    before, bases = copied(inputs["state"]), [x._base for x in out]
    versions = [x._version for x in out]
    for name in (backend, "reference"):
        h, state = mlstm_step(**inputs, out=out, eps=eps, backend=name)
        assert state is out
        assert_same(h, out, mlstm_step(**inputs, eps=eps, backend=name))
        assert all(torch.equal(a, b) for a, b in zip(inputs["state"], before, strict=True))
    assert all(x._version > version for x, version in zip(out, versions, strict=True))
    assert not apart or all(base is not None and base[..., -1].isnan().all() for base in bases)


@both_paths
def test_of_the_empty_state_and_of_no_token(backend: str, device: str, eps: float) -> None:
    inputs, out = tokens(device=device), buffers(device=device)
    h, _ = mlstm_step(**inputs | {"state": None}, out=out, eps=eps, backend=backend)
    assert_same(h, out, mlstm_step(**inputs | {"state": None}, eps=eps, backend=backend))
    none = {name: x if name == "state" else x.unsqueeze(2)[:, :, :0] for name, x in inputs.items()}
    mlstm_step(**none, out=out, eps=eps, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(out, inputs["state"], strict=True))


@both_paths
@pytest.mark.parametrize("C_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_out_may_be_the_state_itself(backend: str, device: str, C_dtype: torch.dtype, eps: float) -> None:
    inputs = tokens(device=device)
    usual, given = (copied(inputs["state"], C_dtype) for _ in range(2))
    expected = mlstm_step(**inputs | {"state": usual}, inplace=True, eps=eps, backend=backend)
    out = MLSTMState(*given)
    h, state = mlstm_step(**inputs | {"state": given}, out=out, eps=eps, backend=backend)
    assert_same(h, state, expected)
    assert all(a is b for a, b in zip(state, given, strict=True))


def refused(case: str) -> tuple[dict[str, Any], str]:
    inputs, out = tokens(), buffers()
    state = inputs["state"]
    C, n, m = out
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "inplace": ({"inplace": True}, "out goes with neither inplace=True nor slots"),
        "slots": ({"slots": torch.arange(B).int()}, "out goes with neither inplace=True nor slots"),
        "two tensors": ({"out": (C, n)}, r"out must be None, MLSTMState\(C, n, m\) or a tuple of 3 tensors"),
        "shape": ({"out": MLSTMState(C[:1], n, m)}, r"out.C must have shape \(B=2, H=3, Dqk=4, Dv=4\)"),
        "dtype": ({"out": MLSTMState(C.bfloat16(), n, m)}, "out.C must have dtype torch.float32, got"),
        "columns": ({"out": MLSTMState(C.mT, n, m)}, "out.C must be contiguous in its last dimension"),
        "one memory": ({"out": MLSTMState(C, C[..., 0, :], m)}, "out.C and out.n must not lie in one range of memory"),
        "the state's": ({"out": MLSTMState(C, state.n, m)}, "state.n and out.n must not lie in one range of memory un"),
        "gradients": ({"q": inputs["q"].clone().requires_grad_()}, "out does not support inputs that require grad"),
    }
    changed, message = cases[case]
    return inputs | {"out": out} | changed, message


@both_paths
@pytest.mark.parametrize(
    "case", ["inplace", "slots", "two tensors", "shape", "dtype", "columns", "one memory", "the state's", "gradients"]
)
def test_refusals(case: str, eps: float) -> None:
    arguments, message = refused(case)
    with pytest.raises((ValueError, TypeError), match=f"mlstm_step: {message}"):
        mlstm_step(**arguments, eps=eps)


@pytest.mark.parametrize("case", ["shape", "dtype", "columns", "one memory", "the state's"])
def test_the_op_refuses_too(case: str) -> None:
    arguments, _ = refused(case)
    values = [arguments[name] for name in "qkvif"]
    with pytest.raises(RuntimeError, match="mlstm_step: "):
        torch.ops.xlstm_cuda.mlstm_step_out_(*values, *arguments["state"], *arguments["out"], False, True, 0.5, 1e-6)
