"""TiRex-2: its sLSTM layers, which call flashrnn, and its mLSTM layers, which hold an mLSTMBackend."""

from __future__ import annotations

from typing import Any

from mlstm_kernels.torch.backend_module import mLSTMBackend
from tirex2.model.component.flashrnn_slstm import _FlashRNNLayer
from torch import Tensor

from ..flashrnn.call import Layout, run
from ..flashrnn.config import FlashRNNConfig
from ..nxai.backend import PatchedMLSTMBackend


def _slstm(
    layer: Any, Wx: Tensor, R: Tensor, b: Tensor, config: Any, states: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """_FlashRNNLayer.slstm_flashrnn: Wx (B, T, 4, H, D), states (4, B, 1, H, D), R and b as its config says.

    Returns h (1, B, T, H, D), for the layer reads no other state of each token, and the states after the last one.
    """
    exact = FlashRNNConfig(function="slstm", backend="vanilla")
    layout = Layout("BTGHD", "SBTHD", config.recurrent_shape, config.bias_shape)
    return run(exact, layout, Wx, R, b, states, all_states=False)


METHODS = {(_FlashRNNLayer, "slstm_flashrnn"): _slstm, (mLSTMBackend, "forward"): PatchedMLSTMBackend.forward}
