"""What xlstm_cuda.patch, and patched models of the public `xlstm` package, refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.nxai_models import CONFIGS, build, ids
from xlstm_cuda import patch, unpatch

xlstm = pytest.importorskip("xlstm")
from xlstm.blocks.mlstm.block import mLSTMBlock  # noqa: E402
from xlstm.blocks.mlstm.cell import mLSTMCell  # noqa: E402
from xlstm.blocks.mlstm.layer import mLSTMLayer  # noqa: E402
from xlstm.components.conv import CausalConv1d, CausalConv1dConfig  # noqa: E402


@pytest.fixture(scope="module")
def built() -> Any:
    """mLSTM, sLSTM, mLSTM."""
    model = xlstm.xLSTMLMModel(build(xlstm, xlstm, **CONFIGS["mixed"])).eval()
    patch(model)
    return model


@pytest.mark.parametrize(
    ("model", "got"), [(None, "NoneType"), ([torch.nn.Linear(2, 3)], "list"), (xlstm.xLSTMLMModel, "the class xLSTM")]
)
@pytest.mark.parametrize("op", [patch, unpatch])
def test_no_model(op: Any, model: Any, got: str) -> None:
    with pytest.raises(TypeError, match=f"^{op.__name__}: model must be a torch.nn.Module.*got {got}"):
        op(model)


class OwnCell(mLSTMCell):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, **kwargs: Any) -> Tensor:
        return super().forward(q, k, v)


class OwnLayer(mLSTMLayer):
    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return super().forward(x)


class OwnBlock(mLSTMBlock):
    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return super().forward(x)


@pytest.mark.parametrize(("name", "cls"), [("xlstm.mlstm_cell", OwnCell), ("xlstm", OwnLayer), ("", OwnBlock)])
def test_subclasses_that_know_no_states(name: str, cls: type) -> None:
    """With two rows their output can be unpacked like (output, state)."""
    model = xlstm.xLSTMLMModel(build(xlstm, xlstm, **CONFIGS["mixed"])).eval()
    model.xlstm_block_stack.blocks[0].get_submodule(name).__class__ = cls
    patch(model)
    assert len(ids()) == 2 and model(ids()).isfinite().all()
    with pytest.raises(TypeError, match=f"{cls.__name__} is a class of your own"):
        model(ids(), return_last_state=True)


def layer_state(change: Callable[[dict[str, Any]], Any], block: int = 0) -> Callable[[dict[str, Any]], Any]:
    def changed(state: dict[str, Any]) -> Any:
        of_layer = dict(state[f"block_{block}"])
        return state | {f"block_{block}": change(of_layer) or of_layer}

    return changed


STATES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "list": (lambda s: list(s.values()), "state must be a dict"),
    "fewer blocks": (lambda s: {"block_0": s["block_0"]}, "state must hold 3 blocks, block_0 to block_2, got block_0"),
    "more blocks": (lambda s: s | {"block_3": s["block_2"]}, "state must hold 3 blocks"),
    "other kind": (lambda s: s | {"block_0": s["block_1"]}, r"\['block_0'\] must hold conv_state and mlstm_state"),
    "tuple": (lambda s: s | {"block_0": s["block_0"]["mlstm_state"]}, r"state\['block_0'\] must be a dict, got tuple"),
    "mlstm parts": (layer_state(lambda s: s.update(mlstm_state=s["mlstm_state"][:2])), "mlstm_state must be a tuple"),
    "mlstm form": (
        layer_state(lambda s: s.update(mlstm_state=tuple(x.squeeze(-1) for x in s["mlstm_state"]))),
        r"mlstm_state must be a tuple .* got \(\(2, 2, 64, 64\), \(2, 2, 64\), \(2, 2, 1\)\)",
    ),
    "slstm parts": (
        layer_state(lambda s: s.update(slstm_state=s["slstm_state"][:2]), 1),
        r"slstm_state must be one tensor \(4, B, 48\), got \(2, 2, 48\)",
    ),
    "slstm width": (
        layer_state(lambda s: s.update(slstm_state=s["slstm_state"][..., 1:]), 1),
        r"slstm_state must be one tensor \(4, B, 48\), got \(4, 2, 47\)",
    ),
    "slstm tuple": (
        layer_state(lambda s: s.update(slstm_state=tuple(s["slstm_state"])), 1),
        r"slstm_state must be one tensor",
    ),
    "window": (
        layer_state(lambda s: s.update(conv_state=(s["conv_state"][0][:1],))),
        r"conv_state must be a tuple of one tensor \(2, K, 128\), got \(\(1, 4, 128\)\)",
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_states(built: Any, name: str) -> None:
    change, message = STATES[name]
    with torch.no_grad():
        _, state = built(ids()[:, :4], return_last_state=True)
        wrong = change(state)
        for call in (built, built.step):
            with pytest.raises((TypeError, ValueError), match=message):
                call(ids()[:, 4:5], wrong)


def test_steps_of_other_lengths(built: Any) -> None:
    for length in (0, 2):
        with pytest.raises(ValueError, match="step takes one token"):
            built.step(ids()[:, :length])
    conv = CausalConv1d(CausalConv1dConfig(feature_dim=6, kernel_size=2))
    patch(conv)
    with pytest.raises(ValueError, match="conv_state must hold 2 tokens, got 1"):  # what their forward returns
        conv.step(torch.randn(2, 1, 6), (torch.randn(2, 1, 6),))
