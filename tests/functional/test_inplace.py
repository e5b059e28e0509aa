"""mlstm_step(inplace=True): states from inference_mode, refusals that are the same on every path, and no call twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from xlstm_cuda import MLSTMState, _checks, mlstm_step
from xlstm_cuda.testing import mlstm_inputs

B, H, DQK, DV = 2, 3, 4, 4
# the default goes to the op at once, the other eps by way of the checks
both_paths = pytest.mark.parametrize("eps", [1e-6, 1e-5], ids=["fast", "checked"])


def tokens(**options: Any) -> dict[str, Any]:
    """One token, and its state."""
    inputs = mlstm_inputs(B, H, 1, DQK, DV, seed=torch.seed() % 2**31, state=True, **options)
    state = inputs.pop("initial_state")
    return {**{name: x[:, :, 0] for name, x in inputs.items()}, "state": state}


def copied(state: MLSTMState, C_dtype: torch.dtype | None = None) -> MLSTMState:
    C, n, m = (s.clone() for s in state)
    return MLSTMState(C if C_dtype is None else C.to(C_dtype), n, m)


@both_paths
@pytest.mark.parametrize("C_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("made", [(True, True, True), (True, False, False), (False, True, False)], ids=str)
def test_a_state_made_under_inference_mode(
    backend: str, device: str, made: tuple[bool, ...], C_dtype: torch.dtype, eps: float
) -> None:
    inputs = tokens(device=device)
    usual = copied(inputs["state"], C_dtype)
    with torch.inference_mode():
        inference = copied(usual)
    state = MLSTMState(*(b.clone() if not m else a for a, b, m in zip(inference, usual, made, strict=True)))
    assert tuple(s.is_inference() for s in state) == made
    with torch.no_grad():
        for name in (backend, "reference"):
            expected, _ = mlstm_step(**{**inputs, "state": usual}, inplace=True, eps=eps, backend=name)
            h, _ = mlstm_step(**{**inputs, "state": state}, inplace=True, eps=eps, backend=name)
            assert torch.equal(h, expected)
            assert all(torch.equal(a, b) for a, b in zip(state, usual, strict=True))


def overlapping(case: str) -> MLSTMState:
    one = torch.zeros(B * H * DQK * (DV + 1))
    C, n, m = one[: B * H * DQK * DV].view(B, H, DQK, DV), torch.zeros(B, H, DQK), torch.zeros(B, H)
    shapes = {"C": ((B, H, DQK, DV), (H * DQK * DV, DQK * DV, 2, 1)), "n": ((B, H, DQK), (4, 4, 1))}
    if case in shapes:
        own = torch.zeros(200).as_strided(*shapes[case])
        return MLSTMState(C, n, m)._replace(**{case: own})
    if case == "C and n":
        return MLSTMState(C, one[8 : 8 + B * H * DQK].view(B, H, DQK), m)
    if case == "n and m":
        return MLSTMState(C, n, n.view(-1)[: B * H].view(B, H))
    return MLSTMState(C, n, torch.zeros(B, H, 2)[..., 0])  # strided m


@both_paths
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("C", "state.C must be contiguous in its last dimension and not expanded, nor overlap itself"),
        ("n", "state.n must be contiguous in its last dimension and not expanded, nor overlap itself"),
        ("strided m", "state.m must be contiguous in its last dimension"),
        ("C and n", "state.C and state.n must not lie in one range of memory"),
        ("n and m", "state.n and state.m must not lie in one range of memory"),
    ],
)
def test_states_that_cannot_be_overwritten(case: str, message: str, eps: float) -> None:
    inputs = tokens() | {"state": overlapping(case)}
    before = copied(inputs["state"])
    with pytest.raises(ValueError, match=f"mlstm_step: {message}"):
        mlstm_step(**inputs, inplace=True, eps=eps)
    assert all(torch.equal(a, b) for a, b in zip(inputs["state"], before, strict=True))
    values = [inputs[name] for name in "qkvif"]
    with pytest.raises(RuntimeError, match="mlstm_step: "):
        torch.ops.xlstm_cuda.mlstm_step_(*values, *inputs["state"], None, False, True, 0.5, 1e-6)
    mlstm_step(**inputs, eps=eps)  # as inputs they are free


@both_paths
def test_a_negated_view_is_no_state_to_overwrite(eps: float) -> None:
    """Its memory holds the negative values; torch calls an op on a copy and then fails."""
    inputs = tokens()
    state = inputs["state"]._replace(C=torch._neg_view(inputs["state"].C))
    with pytest.raises(ValueError, match="mlstm_step: state.C must not be a negated view"):
        mlstm_step(**inputs | {"state": state}, inplace=True, eps=eps)


def test_parts_of_one_table_are_a_state() -> None:
    """What lies apart is accepted, be it in one storage, and rows may lie apart from each other."""
    inputs, table = tokens(), torch.zeros(500)
    sizes = B * H * (DQK * DV + 3), B * H * DQK, B * H
    C, n, m = table[: sum(sizes)].split(sizes)
    state = MLSTMState(C.view(B, H, -1)[..., : DQK * DV].unflatten(2, (DQK, DV)), n.view(B, H, DQK), m.view(B, H))
    for own, s in zip(state, inputs["state"], strict=True):
        own.copy_(s)
    expected, after = mlstm_step(**inputs)
    h, _ = mlstm_step(**{**inputs, "state": state}, inplace=True)
    assert torch.equal(h, expected) and all(torch.equal(a, b) for a, b in zip(state, after, strict=True))


def in_pages(state: MLSTMState, order: str, gap: int = 0) -> MLSTMState:
    """Copies of C, n and m, row by row in one table, in this order and so many bytes apart."""
    rows, sizes = len(state.m), {name: s[0].nbytes for name, s in state._asdict().items()}
    page = sum(sizes.values()) + 3 * gap
    table = torch.zeros(rows, page, dtype=torch.uint8, device=state.m.device)
    begin, found = 0, {}
    for name in order:
        s = getattr(state, name)
        part = table[:, begin : begin + sizes[name]].view(s.dtype)
        found[name] = part.view(s.shape) if s.ndim == 2 else part.unflatten(1, s.shape[1:])
        found[name].copy_(s)
        begin += sizes[name] + gap
    return MLSTMState(**found)


@both_paths
@pytest.mark.parametrize("C_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("order", ["Cnm", "mnC", "nCm"])
@pytest.mark.parametrize("gap", [0, 64])
def test_rows_in_pages_of_one_table(
    backend: str, device: str, order: str, gap: int, C_dtype: torch.dtype, eps: float
) -> None:
    """As serving engines keep states: a page has all of a row's parts, and a request has a page."""
    inputs = tokens(device=device)
    rows = MLSTMState(*(torch.cat([torch.randn_like(s), s]) for s in copied(inputs.pop("state"), C_dtype)))
    usual, state = copied(rows), in_pages(rows, order, gap)
    slots = torch.tensor([3, 1], dtype=torch.int32, device=device)
    options: dict[str, Any] = {"inplace": True, "slots": slots, "eps": eps}
    for name in (backend, "reference"):
        expected, _ = mlstm_step(**inputs, state=usual, backend=name, **options)
        h, _ = mlstm_step(**inputs, state=state, backend=name, **options)
        assert torch.equal(h, expected)
        assert all(torch.equal(a, b) for a, b in zip(state, usual, strict=True))
        assert all(torch.equal(a[0::2], b[0::2]) for a, b in zip(state, rows, strict=True)), "pages of nobody"


@both_paths
def test_pages_that_overlap_are_refused(eps: float) -> None:
    """A part that reaches into the next one of its page, or lies in it."""
    inputs = tokens()
    good = in_pages(inputs["state"], "nCm")
    for name, offset in (("n", 1), ("n", 30), ("n", H * DQK + H * DQK * DV - H * DQK), ("m", H * DQK * (DV + 1) - 1)):
        part = getattr(good, name)
        state = good._replace(**{name: part.as_strided(part.shape, part.stride(), offset)})
        with pytest.raises(ValueError, match=r"state\.\w and state\.\w must not lie in one range of memory"):
            mlstm_step(**inputs | {"state": state}, inplace=True, eps=eps)
        values = [inputs[name] for name in "qkvif"]
        with pytest.raises(RuntimeError, match="must not lie in one range of memory"):
            torch.ops.xlstm_cuda.mlstm_step_(*values, *state, None, False, True, 0.5, 1e-6)


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"q": torch.zeros(())}, ValueError),
        ({"state": iter([torch.zeros(1)])}, TypeError),
        ({"state": torch.zeros(3, B, H)}, TypeError),
        ({"eps": torch.tensor(1e-6)}, ValueError),
        ({"i": torch.zeros(B, H, dtype=torch.int32)}, TypeError),
    ],
    ids=["q without dimensions", "an iterator", "a tensor as the state", "a tensor as eps", "whole numbers"],
)
def test_the_fast_path_refuses_what_the_checks_refuse(changed: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match="mlstm_step: "):
        mlstm_step(**tokens() | changed, inplace=True)


def test_an_op_that_raises_is_not_called_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the checks find nothing its own error comes out."""
    calls: list[Tensor] = []
    inputs = tokens()

    def fail(*arguments: Any) -> None:
        calls.append(arguments[0])
        raise RuntimeError("out of memory")

    monkeypatch.setattr(torch.ops.xlstm_cuda.mlstm_step_, "default", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        mlstm_step(**inputs, inplace=True)
    assert len(calls) == 1


def test_tensors_without_memory_do_not_overlap() -> None:
    state = MLSTMState(*(torch.zeros(shape, device="meta") for shape in ((B, H, DQK, DV), (B, H, DQK), (B, H))))
    _checks._apart("mlstm_step", _checks._named("state", state), "with inplace=True")
