"""TiRex-2 (tirex-2) with its own plain PyTorch and with ours: tiny random models, built from its classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from xlstm_cuda.interop import tirex as ours
from xlstm_cuda.testing import assert_close_relative

pytest.importorskip("tirex2")
from tirex2 import TimeseriesType, TiRex2  # noqa: E402
from tirex2.model.component.flashrnn_slstm import init_cell  # noqa: E402
from tirex2.model.component.xlstm_mixed_config import xLSTMMixedConfig  # noqa: E402

PATCH, CONTEXT, FUTURE, DIM = 4, 32, 8, 16


@pytest.fixture(autouse=True)
def unpatched() -> Iterator[None]:
    yield
    ours.unpatch()


def build() -> TiRex2:
    """An sLSTM and an mLSTM block, both bidirectional; every parameter random: zeros hide mistakes."""
    torch.manual_seed(0)
    templates = {
        kind: {
            "time_mixer": {"model_type": kind, "embedding_dim": DIM, "num_heads": 2, "num_slstm_heads": 2},
            "variate_mixer": {"embedding_dim": DIM, "num_heads": 2},
            "dropout": 0.0,
            "eps": 1e-6,
        }
        for kind in ("bi-slstm", "bi-mlstm")
    }
    model = TiRex2(
        stack_config={"templates": templates, "recipe": list(templates)},
        num_blocks=2,
        embedding_dim=DIM,
        input_patch_size=PATCH,
        output_patch_size=PATCH,
        quantiles=[0.1, 0.5, 0.9],
        tokenizer_cfg={"output_patch_size": PATCH, "input_patch_size": PATCH, "input_patch_stride": PATCH},
        scaler_cfg={},
        h_expand=1.0,
        context_len=CONTEXT,
        future_len=FUTURE,
        input_ff_dim=24,
        act_func="ReLU",
        dropout=0.0,
        device="cpu",
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * parameter.shape[-1] ** -0.5)
    return model


def series() -> list[TimeseriesType]:
    """One and two targets, with past and with known covariates: both directions are used."""
    draw = torch.Generator().manual_seed(1)

    def rows(count: int, length: int) -> Tensor:
        return torch.randn(count, length, generator=draw).cumsum(1)

    return [TimeseriesType(rows(1, 40), None, None), TimeseriesType(rows(2, 30), rows(1, 30), rows(2, 30 + FUTURE))]


def forecasts(model: TiRex2) -> list[Tensor]:
    return list(model.predict(series(), FUTURE))


def gradients(model: TiRex2) -> dict[str, Tensor]:
    """One step of fine-tuning: the gradients of all parameters."""
    batch = {
        "x": torch.randn(3, CONTEXT + FUTURE, generator=torch.Generator().manual_seed(2)),
        "group_vector": torch.tensor([0, 0, 1]),
        "target_mask": torch.tensor([True, False, True]),
    }
    output = model(batch)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad((output * weight).sum(), parameters), strict=True))


def with_ours(call: Callable[[], Any]) -> Any:
    ours.patch()
    try:
        return call()
    finally:
        ours.unpatch()


def test_forecasts() -> None:
    model = build()
    expected, actual = forecasts(model), with_ours(lambda: forecasts(model))
    assert [x.shape for x in expected] == [(1, 3, FUTURE), (2, 3, FUTURE)]
    for a, e in zip(actual, expected, strict=True):
        assert not torch.equal(a, e), "the same kernels ran twice"
        assert_close_relative(a, e, 1e-5)


def test_gradients() -> None:
    model = build()
    expected, actual = gradients(model), with_ours(lambda: gradients(model))
    for name, gradient in expected.items():
        assert gradient.any(), name
        assert_close_relative(actual[name], gradient, 1e-5, name)


def test_step_with_a_state() -> None:
    torch.manual_seed(0)
    layer = init_cell(xLSTMMixedConfig(DIM, 2, 1, 0, num_slstm_heads=2), 0, 1, "cpu")
    torch.nn.init.normal_(layer._recurrent_kernel_, std=0.3)
    x = torch.randn(3, 5, DIM)

    def outputs() -> list[Tensor]:
        state, found = None, []
        for t in range(x.shape[1]):
            y, carried = layer.step(x[:, t : t + 1], slstm_state=state)
            state = carried["slstm_state"]
            found += [y, state]
        return found

    for a, e in zip(with_ours(outputs), outputs(), strict=True):
        assert a.dtype == e.dtype
        assert_close_relative(a, e, 1e-5)


def test_patch_and_unpatch() -> None:
    from mlstm_kernels.torch.backend_module import mLSTMBackend

    own = mLSTMBackend.forward
    ours.patch()
    ours.patch()
    assert mLSTMBackend.forward is not own
    ours.unpatch()
    assert mLSTMBackend.forward is own
