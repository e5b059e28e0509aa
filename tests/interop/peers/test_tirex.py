"""TiRex (tirex-ts) with its own sLSTM and with ours: tiny random models, built from TiRex's classes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from xlstm_cuda.interop import tirex as ours
from xlstm_cuda.testing import assert_close_relative, relative_error

pytest.importorskip("tirex")
from tirex.models.slstm import cell as tirex_cell  # noqa: E402
from tirex.models.tirex import TiRexZero  # noqa: E402

PATCH, CONTEXT, DIM, HEADS = 4, 48, 32, 2


@pytest.fixture(autouse=True)
def unpatched() -> Iterator[None]:
    yield
    ours.unpatch()


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    do_not_round(monkeypatch)


def do_not_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """TiRex's cell as it is written, but what it calls bfloat16 is float32."""
    namespace = ModuleType("torch")
    vars(namespace).update(vars(torch), bfloat16=torch.float32)
    monkeypatch.setattr(tirex_cell, "torch", namespace)


def build(backend: str = "torch") -> TiRexZero:
    """Every parameter random: zeros hide mistakes."""
    torch.manual_seed(0)
    block = {"num_blocks": 2, "embedding_dim": DIM, "num_heads": HEADS}
    config = {
        "input_patch_size": PATCH,
        "output_patch_size": PATCH,
        "quantiles": [0.1, 0.5, 0.9],
        "block_kwargs": block,
        "input_ff_dim": 24,
    }
    model = TiRexZero(backend=backend, model_config=config, train_ctx_len=CONTEXT)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * parameter.shape[-1] ** -0.5)
    return model


def with_ours(call: Callable[[], Any]) -> Any:
    ours.patch()
    try:
        return call()
    finally:
        ours.unpatch()


def series() -> list[Tensor]:
    """Longer and shorter than the context, and with a gap."""
    rows = [torch.randn(n, generator=torch.Generator().manual_seed(n)).cumsum(0) for n in (60, 48, 17)]
    rows[1][10:20] = torch.nan
    return rows


def forecast(model: TiRexZero) -> tuple[Tensor, Tensor]:
    """Quantiles (3, 18, 3) and medians (3, 18) of five patches, two at a time."""
    options: dict[str, Any] = {"prediction_length": 18, "max_accelerated_rollout_steps": 2, "batch_size": 2}
    return model.forecast(context=series(), output_type="torch", **options)


def gradients(model: TiRexZero) -> dict[str, Tensor]:
    output = model._forward_model(torch.randn(3, 7, 2 * PATCH, generator=torch.Generator().manual_seed(0)))
    names, parameters = zip(*model.named_parameters(), strict=True)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return dict(zip(names, torch.autograd.grad((output * weight).sum(), parameters), strict=True))


def test_forecasts(exact: None) -> None:
    model = build()
    expected = forecast(model)
    assert expected[0].shape == (3, 18, 3) and expected[0].isfinite().all()
    for backend in ("torch", "cuda"):  # which of its own cells TiRex would run no longer matters
        model = build(backend)
        actual = with_ours(lambda model=model: forecast(model))
        for a, e in zip(actual, expected, strict=True):
            assert not torch.equal(a, e), "the same kernel ran twice"
            assert_close_relative(a, e, 1e-5)


def test_gradients(exact: None) -> None:
    model = build()
    expected, actual = gradients(model), with_ours(lambda: gradients(model))
    for name, gradient in expected.items():
        assert gradient.any(), name
        assert_close_relative(actual[name], gradient, 1e-5, name)


@pytest.mark.parametrize("tokens", [1, 9])
def test_cell_with_a_state(exact: None, tokens: int) -> None:
    """Order of the gates, heads, states; gradients through the first and the last state."""
    cell = build().blocks[0].slstm_layer.slstm_cell
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(3, tokens, 4 * DIM, generator=draw, requires_grad=True)
    state = torch.randn(4, 3, DIM, generator=draw)
    state[2] = state[2].abs() + 0.5
    state.requires_grad_()

    def results(start: Tensor | None) -> list[Tensor]:
        output, final = cell(x, start)
        weights = [torch.randn(y.shape, generator=torch.Generator().manual_seed(3)) for y in (output, final)]
        sources = [x, *cell.parameters()] if start is None else [x, start, *cell.parameters()]
        loss = sum((y * w).sum() for y, w in zip((output, final), weights, strict=True))
        return [output, final, *torch.autograd.grad(loss, sources)]

    for start in (None, state):
        expected, actual = results(start), with_ours(lambda start=start: results(start))
        for a, e in zip(actual, expected, strict=True):
            assert a.dtype == e.dtype
            assert_close_relative(a, e, 1e-5)


def test_rounds_less_than_tirex(monkeypatch: pytest.MonkeyPatch) -> None:
    """TiRex as installed, in bfloat16: the same forecasts but for its rounding, of which ours are free."""
    model = build()
    rounded, actual = forecast(model)[0], with_ours(lambda: forecast(model))[0]
    do_not_round(monkeypatch)
    expected = forecast(model)[0]
    assert 1e-4 < relative_error(rounded, expected) < 5e-2
    assert relative_error(actual, expected) < 1e-5


def test_autocast() -> None:
    """bfloat16 on request."""
    model, x = build(), torch.randn(2, 6, 2 * PATCH)
    with torch.no_grad():
        expected = with_ours(lambda: model._forward_model(x))
        with torch.autocast("cpu", torch.bfloat16):
            actual = with_ours(lambda: model._forward_model(x))
    assert 1e-4 < relative_error(actual.float(), expected) < 5e-2


def test_patch_and_unpatch() -> None:
    own = tirex_cell.sLSTMCell.forward
    ours.unpatch()
    assert tirex_cell.sLSTMCell.forward is own
    ours.patch()
    ours.patch()
    assert tirex_cell.sLSTMCell.forward is not own
    ours.unpatch()
    assert tirex_cell.sLSTMCell.forward is own


def test_former_names() -> None:
    own = tirex_cell.sLSTMCell.forward
    ours.enable()
    patched = tirex_cell.sLSTMCell.forward
    ours.unpatch()
    ours.patch()
    assert tirex_cell.sLSTMCell.forward is patched is not own
    ours.disable()
    assert tirex_cell.sLSTMCell.forward is own


def test_wrong_shapes() -> None:
    cell = tirex_cell.sLSTMCell(tirex_cell.sLSTMBlockConfig(embedding_dim=8, num_heads=2), "torch")
    x, state = torch.zeros(2, 3, 32), torch.zeros(4, 2, 8)
    for args, message in (
        ((x[..., 1:], None), r"input must have shape \(B, S, 32\), got \(2, 3, 31\)"),
        ((x, state[:3]), r"state must have shape \(4, 2, 8\), got \(3, 2, 8\)"),
        ((x, state[:, :1]), r"state must have shape \(4, 2, 8\), got \(4, 1, 8\)"),
    ):
        with pytest.raises(ValueError, match=f"^sLSTMCell: {message}"):
            with_ours(lambda args=args: cell(*args))


def test_without_either_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tirex", "tirex2"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="needs one of the packages tirex-ts .*; tirex-2 "):
        ours.patch()


def test_with_one_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tirex2", None)
    own = tirex_cell.sLSTMCell.forward
    ours.patch()
    assert tirex_cell.sLSTMCell.forward is not own
