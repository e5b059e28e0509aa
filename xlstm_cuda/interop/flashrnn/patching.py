"""enable() and disable(): the package's own function on these kernels."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from .call import Layout, run
from .config import FlashRNNConfig, check

_original: Callable[..., Any] | None = None  # the package's own, while ours is in its place


def enable(*, all_states: bool = True) -> None:
    """Calls of the package's `flashrnn` compute here from now on, also where a program took the function before.

    all_states: as in our `flashrnn`; False for programs that read h alone, output[0]. The last call
    decides. ImportError without the package flashrnn (tried: 1.0.8).
    """
    global _original
    module = _module()
    if _original is None:
        _original = module._get_kernel
    module._get_kernel = partial(_kernel, all_states=all_states)


def disable() -> None:
    """Puts the package's own kernels back; does nothing unless enabled."""
    global _original
    if _original is not None:
        _module()._get_kernel, _original = _original, None


def _module() -> Any:
    try:
        module = importlib.import_module("flashrnn.flashrnn.flashrnn")
    except ImportError as error:
        raise ImportError(f"xlstm_cuda.interop.flashrnn.enable needs the package flashrnn (1.0.8): {error}") from error
    if not hasattr(module, "_get_kernel"):
        raise ImportError("xlstm_cuda.interop.flashrnn.enable needs flashrnn 1.0.8: this one chooses kernels elsewhere")
    return module


def _kernel(config: FlashRNNConfig, all_states: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    """What the package calls with tensors that lie as its backend wants them."""
    check(config)
    internal: Any = config
    layout = Layout(
        internal._internal_input_shape,
        internal._internal_output_shape,
        internal._internal_recurrent_shape,
        internal._internal_bias_shape,
    )

    def kernel(Wx: Tensor, states: Tensor, R: Tensor, b: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return run(config, layout, Wx, R, b, states, all_states)

    return kernel
