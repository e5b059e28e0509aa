"""mLSTMBackend of the `mlstm_kernels` package, on functional.mlstm."""

from __future__ import annotations

from typing import Any

import torch
from mlstm_kernels.torch.backend_module import mLSTMBackend
from torch import Tensor

from ... import functional
from ..._states import MLSTMState


class PatchedMLSTMBackend(mLSTMBackend):
    """Any S, states and exact gradients in every mode and for every `chunkwise_kernel`.

    Of the config only mode, return_last_states, eps, autocast_kernel_dtype, normalize_siging and whether
    chunkwise_kernel is one with a sigmoid input gate ("siging") have a meaning. States have float32 at least.
    """

    @property
    def _step_eps(self) -> float | None:
        """The eps of its decode steps, where these have exponential gates."""
        return None if "siging" in self.config.chunkwise_kernel else self.config.eps

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        i: Tensor,
        f: Tensor,
        c_initial: Tensor | None = None,
        n_initial: Tensor | None = None,
        m_initial: Tensor | None = None,
        return_last_states: bool | None = None,
        mode: str | None = None,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """q, k (B, H, S, Dqk), v (B, H, S, Dv), i, f (B, H, S), state C (B, H, Dqk, Dv), n (B, H, Dqk), m (B, H, 1).

        Returns h (B, H, S, Dv); with return_last_states, and always in inference mode, (h, (C, n, m)).
        """
        mode = self.config.mode if mode is None else mode
        if "train" not in mode and "inference" not in mode:
            raise ValueError(f"mode must be 'train', 'train_with_padding' or 'inference', got {mode!r}")
        if return_last_states is None:
            return_last_states = self.config.return_last_states
        given = [part is not None for part in (c_initial, n_initial, m_initial)]
        if any(given) and not all(given):
            raise ValueError("mLSTMBackend: c_initial, n_initial and m_initial must be given together")
        state = None
        if c_initial is not None and n_initial is not None and m_initial is not None:
            state = MLSTMState(c_initial, n_initial, m_initial.view(m_initial.shape[:2]))
        options: dict[str, Any] = {"eps": self.config.eps}
        if "siging" in self.config.chunkwise_kernel:
            options |= {"input_gate": "sigmoid", "normalize": self.config.normalize_siging}
        if torch.is_autocast_enabled(q.device.type):
            q, k, v = (x.to(getattr(torch, self.config.autocast_kernel_dtype)) for x in (q, k, v))
        with torch.autocast(q.device.type, enabled=False):
            h, (C, n, m) = functional.mlstm(q, k, v, i, f, initial_state=state, return_state=True, **options)
        return (h, (C, n, m[..., None])) if return_last_states or "inference" in mode else h


PATCHED: dict[type, type] = {mLSTMBackend: PatchedMLSTMBackend}
