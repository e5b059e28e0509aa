"""flashrnn(): the package's arguments and layouts around functional.lstm and functional.slstm."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ... import _autocast, functional
from ..._states import LSTMState, SLSTMState
from .all_states import all_states as every_state
from .config import STATES, FlashRNNConfig, check


def flashrnn(
    Wx: Tensor,
    R: Tensor,
    b: Tensor,
    states: Tensor | None = None,
    function: str = "lstm",
    config: FlashRNNConfig | None = None,
    backend: str = "cuda_fused",
    dtype: str = "bfloat16",
    *,
    all_states: bool = True,
) -> tuple[Tensor, Tensor]:
    """An LSTM or sLSTM over a sequence, called and laid out as in the package flashrnn (arXiv 2412.07752).

    Args:
        Wx: input part of the gate pre-activations, gates i, f, z, o: (B, T, 4, H, D).
        R: recurrent weights (4, H, D, D): the gate of unit D reads unit P, the last dimension, of the token before.
        b: bias (4, H, D).
        states: h, c, for an sLSTM also n and m: (S, B, 1, H, D), S = 2 or 4. None: `config.initial_val`, zeros.
        function: "lstm" or "slstm"; of no meaning with a config, as are backend and dtype.
        config: FlashRNNConfig of this module or of the package; other orders of all dimensions are fields of it.
        backend, dtype: as in FlashRNNConfig. dtype: Wx, R and b keep their own without a config.
        all_states: False: the first result has h alone, (1, B, T, H, D). The kernels have no need to keep the rest
            (c, n and m after every token), and finding it takes several times as long as they do.

    Returns:
        All states after every token (S, B, T, H, D), and those after the last one (S, B, 1, H, D).

    Computed in the dtype of Wx and R, under autocast too, states in float32 at least.

    An element of `states` with n = 0 is empty, whatever the others are; the package ignores its m only where all n are
    0. n is no less than 1 there, after the first token at the latest; here it is so from the empty state on, or from
    states that such a call returned.

    Raises:
        TypeError, ValueError: no tensors, other shapes, functions, names of layouts, or options that have no kernel.
    """
    if config is None:
        for name, tensor in (("Wx", Wx), ("R", R), ("b", b)):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"flashrnn: {name} must be a tensor, got {type(tensor).__name__}")
        own = {f"dtype_{letter}": _name(tensor.dtype) for letter, tensor in (("w", Wx), ("r", R), ("b", b))}
        config = FlashRNNConfig(function=function, backend=backend, dtype=dtype or "bfloat16", **cast(Any, own))
    else:
        check(config)
    layout = Layout(config.input_shape, config.output_shape, config.recurrent_shape, config.bias_shape)
    return run(config, layout, Wx, R, b, states, all_states)


_CELLS = {"lstm": (functional.lstm, LSTMState), "slstm": (functional.slstm, SLSTMState)}


class Layout(NamedTuple):
    """The order of the dimensions of Wx, of states, of R and of b."""

    input: str
    states: str
    R: str
    b: str


def run(
    config: FlashRNNConfig,
    layout: Layout,
    Wx: Tensor,
    R: Tensor,
    b: Tensor,
    states: Tensor | None,
    all_states: bool = True,
) -> tuple[Tensor, Tensor]:
    """`flashrnn` of tensors that lie as `layout` says."""
    _check_shapes(config, layout, Wx, R, b, states)
    x, R, b = _turned(Wx, layout.input, "BTGHD"), _turned(R, layout.R, "GHDP"), _turned(b, layout.b, "GHD")
    state = None if states is None else _turned(states, layout.states, "TSBHD")[0]
    dtype = x.dtype  # of the results
    if config.enable_automatic_mixed_precision and config.backend != "vanilla":
        dtype = _dtype(config.dtype_s)
        x, R, b = x.to(_dtype(config.dtype_w)), R.to(_dtype(config.dtype_r)), b.to(_dtype(config.dtype_b))
        state = None if state is None else state.to(dtype)
    wide = torch.promote_types(x.dtype, R.dtype)
    x, R = x.to(wide), R.to(wide)
    if state is None and config.initial_val != 0:
        state = _constant_state(config, x)

    with _autocast.disabled(x.device.type):  # the config says all that there is to say about dtypes
        h, final = _scan(config.function, x, R, b, state)
        found, last = h[None], torch.stack(final)[:, :, None]
        if all_states:
            start = torch.zeros_like(last[:, :, 0]) if state is None else state
            found = every_state(dtype, h, x, R, b, start)
    return _turned(found.to(dtype), "SBTHD", layout.states), _turned(last.to(dtype), "SBTHD", layout.states)


def _scan(function: str, x: Tensor, R: Tensor, b: Tensor, state: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    """h (B, T, H, D) and the final state, from states (S, B, H, D)."""
    scan, kind = cast(Any, _CELLS[function])
    return cast(Any, scan(x, R, b, initial_state=None if state is None else kind(*state), return_state=True))


def _constant_state(config: FlashRNNConfig, x: Tensor) -> Tensor:
    """(S, B, H, D) of config.initial_val."""
    count = STATES[config.function]
    values = torch.as_tensor(config.initial_val, dtype=torch.float32, device=x.device).expand(count)
    return values.view(count, 1, 1, 1).expand(count, x.shape[0], *x.shape[3:])


def _check_shapes(
    config: FlashRNNConfig, layout: Layout, Wx: Tensor, R: Tensor, b: Tensor, states: Tensor | None
) -> None:
    given = {"Wx": (Wx, layout.input), "R": (R, layout.R), "b": (b, layout.b), "states": (states, layout.states)}
    for name, (tensor, letters) in given.items():
        if tensor is None and name == "states":
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"flashrnn: {name} must be a tensor, got {type(tensor).__name__}")
        if tensor.ndim != len(letters):
            raise ValueError(f"flashrnn: {name} must have the dimensions {letters}, got {tuple(tensor.shape)}")
    sizes = dict(zip(layout.input, Wx.shape, strict=True))
    sizes |= {"G": 4, "P": sizes["D"], "S": STATES[config.function]}
    for name, (tensor, letters) in given.items():
        expected = tuple(1 if name == "states" and letter == "T" else sizes[letter] for letter in letters)
        if tensor is not None and tensor.shape != expected:
            raise ValueError(f"flashrnn: {name} ({letters}) must have shape {expected}, got {tuple(tensor.shape)}")


def _turned(x: Tensor, letters: str, to: str) -> Tensor:
    return x.permute([letters.index(letter) for letter in to])


def _dtype(name: str | None) -> torch.dtype:
    return cast(torch.dtype, getattr(torch, cast(str, name)))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
