"""Cells, convolution, norm over heads and headwise maps of the public `xlstm` package, on the functions of xlstm_cuda.

States have the public code's form, the one that its `step` takes and returns:
conv_state, a tuple of one tensor (B, K, F), the last K inputs of a convolution of width K;
mlstm_state, a tuple C (B, H, D, D), n (B, H, D, 1), m (B, H, 1, 1), where C and n sum keys that are divided by sqrt(D)
(functional.mlstm scales queries instead: its C and n are larger by sqrt(D));
slstm_state, a tensor (4, B, H D) of h, c, n, m, or (2, B, H D) of h, c with function="lstm".
States that are returned have float32 at least, and those that are taken are not written to.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from xlstm.blocks.mlstm.cell import mLSTMCell
from xlstm.blocks.slstm.cell import sLSTMCell_cuda, sLSTMCell_vanilla
from xlstm.components.conv import CausalConv1d
from xlstm.components.linear_headwise import LinearHeadwiseExpand
from xlstm.components.ln import MultiHeadLayerNorm
from xlstm.components.util import ParameterProxy

from ... import _autocast, functional
from ..._children import call, is_ordinary, is_plain
from ..._states import LSTMState, MLSTMState, SLSTMState
from ...nn.gates import joined_gates
from ...nn.linear_headwise import for_kernels
from .states import shapes


class PatchedCausalConv1d(CausalConv1d):
    """The state is the same in `forward` and `step`; `forward` also takes the bare tensor (B, up to K, F) of theirs."""

    def forward(
        self,
        x: Tensor,
        conv_state: tuple[Tensor] | Tensor | None = None,
        return_last_state: bool = False,
        activation: str | None = None,
    ) -> Tensor | tuple[Tensor, tuple[Tensor]]:
        """x (B, S, F) -> (B, S, F), with return_last_state also the state after x. activation: None or "silu"."""
        width, past = self.config.kernel_size, x[:, :0] if conv_state is None else self._past(x, conv_state)
        window = x if conv_state is None else torch.cat([past, x], dim=1)
        if self._is_depthwise():
            before = F.pad(past, (0, 0, width - 1, 0))[:, past.shape[1] :]
            weight, bias = self.conv.weight.squeeze(1), self.conv.bias
            y = functional.causal_conv1d(x, weight, bias, activation=activation, initial_state=before)
        else:
            length = window.shape[1]
            y = self.conv(window.mT)[..., length - x.shape[1] : length].mT
            y = F.silu(y) if activation == "silu" else y
        if not return_last_state:
            return cast(Tensor, y)
        last = F.pad(window, (0, 0, max(width - window.shape[1], 0), 0))[:, -width:]
        return cast(Tensor, y), (last.clone(),)  # a view would keep the whole window alive

    def _is_depthwise(self) -> bool:
        """Whether `conv` does what `functional.causal_conv1d` does."""
        conv = self.conv
        usual = (conv.groups, conv.stride, conv.dilation) == (conv.in_channels, (1,), (1,))
        return usual and conv.padding_mode == "zeros" and is_plain(nn.Conv1d, conv)

    def step(self, x: Tensor, conv_state: tuple[Tensor] | None = None) -> tuple[Tensor, tuple[Tensor]]:
        """One token: x (B, 1, F), without the overhead of a convolution."""
        width = self.config.kernel_size
        if x.shape[1] != 1:
            raise ValueError(f"CausalConv1d.step takes one token, (B, 1, {x.shape[2]}), got {tuple(x.shape)}")
        past = x.new_zeros(x.shape[0], width, x.shape[2]) if conv_state is None else self._past(x, conv_state)
        if past.shape[1] != width:  # a shorter one would be broadcast
            raise ValueError(f"CausalConv1d.step: conv_state must hold {width} tokens, got {past.shape[1]}")
        window = torch.cat([past[:, 1:], x], dim=1)
        if not is_plain(nn.Conv1d, self.conv):
            return self.conv(window.mT)[..., width - 1 : width].mT, (window,)
        y = (window * self.conv.weight[:, 0].mT).sum(1, keepdim=True)
        return (y if self.conv.bias is None else y + self.conv.bias), (window,)

    def _past(self, x: Tensor, conv_state: tuple[Tensor] | Tensor) -> Tensor:
        past = conv_state if isinstance(conv_state, Tensor) else conv_state[0]
        if past.ndim != 3 or past.shape[::2] != x.shape[::2]:
            B, _, F = x.shape
            raise ValueError(f"conv_state must be a tuple of one tensor ({B}, K, {F}), got {shapes(conv_state)}")
        return past.to(x.dtype)


class PatchedLinearHeadwise(LinearHeadwiseExpand):
    def forward(self, x: Tensor) -> Tensor:
        if not for_kernels(x, self):
            y: Tensor = super().forward(x)
            return y
        return cast(Tensor, functional.headwise_linear(x, self.weight, self.bias))


class PatchedMultiHeadLayerNorm(MultiHeadLayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        """(B, H, S, D) -> (B, H, S, D), each head of a token by itself."""
        given = [x for x in (input, self.weight, self.bias) if x is not None]
        if not all(map(is_ordinary, given)) or _autocast.enabled(input.device.type):  # which may make it float32
            y: Tensor = super().forward(input)
            return y
        return torch.unflatten(self.gated(input), -1, (input.shape[1], -1)).transpose(1, 2)

    def gated(self, h: Tensor, **gate_and_skip: Any) -> Tensor:
        """h (B, H, S, D) -> (B, S, H D), in its dtype. gate_and_skip: as of functional.multihead_norm_gate."""
        offset = float(self.residual_weight)
        h = h.transpose(1, 2)
        return functional.multihead_norm_gate(
            h, self.weight, self.bias, eps=self.eps, weight_offset=offset, **gate_and_skip
        )


class PatchedMLSTMCell(mLSTMCell):
    """Any S, also beyond context_length. Takes and returns states."""

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mlstm_state: tuple[Tensor, Tensor, Tensor] | None = None,
        return_last_state: bool = False,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """q, k, v (B, S, H D) -> (B, S, H D), with return_last_state also the state after the last token."""
        h, state = self.before_norm(q, k, v, mlstm_state)
        h = self.outnorm(h).transpose(1, 2).flatten(2)
        return (h, state) if return_last_state else h

    def before_norm(
        self, q: Tensor, k: Tensor, v: Tensor, mlstm_state: tuple[Tensor, Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """h (B, H, S, D) and the state after the last token."""
        i, f = self._gates(q, k, v)
        q, k, v = (x.transpose(1, 2) for x in self._heads(q, k, v))
        h, state = functional.mlstm(q, k, v, i, f, initial_state=_our_state(mlstm_state), return_state=True, scale=1.0)
        return h, _their_state(state)

    def step(
        self, q: Tensor, k: Tensor, v: Tensor, mlstm_state: tuple[Tensor, Tensor, Tensor] | None = None, **kwargs: Any
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """One token: q, k, v (B, 1, H D)."""
        if q.shape[1] != 1:
            raise ValueError(f"mLSTMCell.step takes one token, (B, 1, {q.shape[2]}), got {tuple(q.shape)}")
        i, f = (x.squeeze(2) for x in self._gates(q, k, v))
        q, k, v = (x.squeeze(1) for x in self._heads(q, k, v))
        h, state = functional.mlstm_step(q, k, v, i, f, _our_state(mlstm_state), scale=1.0)
        return self.outnorm(h.unsqueeze(2)).transpose(1, 2).flatten(2), _their_state(state)

    def _gates(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """i, f (B, H, S)."""
        gates = self.igate, self.fgate
        parameters = [x for gate in gates for x in (gate._parameters.get("weight"), gate._parameters.get("bias"))]
        same_dtype = all(x is not None and x.dtype == q.dtype for x in parameters)
        if is_plain(nn.Linear, *gates) and same_dtype and not _autocast.enabled(q.device.type):
            return joined_gates(*gates, q, k, v)
        x = torch.cat([q, k, v], dim=-1)
        return call(self.igate, x).mT, call(self.fgate, x).mT

    def _heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, S, H, D) each, the keys divided by sqrt(D)."""
        q, k, v = (torch.unflatten(x, -1, (self.config.num_heads, -1)) for x in (q, k, v))
        return q, k * k.shape[-1] ** -0.5, v


def _our_state(state: tuple[Tensor, Tensor, Tensor] | None) -> MLSTMState | None:
    if state is None:
        return None
    if len(state) != 3 or [part.ndim for part in state] != [4, 4, 4]:
        what = "(C (B, H, D, D), n (B, H, D, 1), m (B, H, 1, 1))"
        raise ValueError(f"mlstm_state must be a tuple {what}, got {shapes(state)}")
    C, n, m = state
    return MLSTMState(C, n.squeeze(-1), m.squeeze(-1).squeeze(-1))


def _their_state(state: MLSTMState) -> tuple[Tensor, Tensor, Tensor]:
    return state.C, state.n[..., None], state.m[..., None, None]


class _SLSTMCell(nn.Module):
    """What both layouts of the weights share. Copies and pickles leave out the kernels that "cuda" cells compiled."""

    config: Any
    _recurrent_kernel_: nn.Parameter
    _bias_: nn.Parameter

    def forward(
        self, input: Tensor, state: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Gate pre-activations (B, S, 4 H D), by config.input_shape, -> h, by config.output_shape, and the state.

        lengths (B,): right padding, as in functional.slstm.
        """
        x = torch.unflatten(input, -1, (4, self.config.num_heads, self.config.head_dim))
        if self.config.input_shape == "SBGNH":
            x = x.transpose(0, 1)
        h, after = self._scan(x, self._unpacked(state), lengths)
        return self._permuted(h), torch.stack([part.flatten(1) for part in after])

    def step(self, input: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """One token of `forward`."""
        y: tuple[Tensor, Tensor] = self(input, state)
        return y

    def _scan(
        self, x: Tensor, state: SLSTMState | LSTMState | None, lengths: Tensor | None
    ) -> tuple[Tensor, SLSTMState | LSTMState]:
        """x (B, S, 4, H, D) -> h (B, S, H, D) and the state."""
        R, b = self._weights()
        R = R.to(x.dtype)
        exponential = self.config.function == "slstm"
        if x.shape[1] == 1 and lengths is None:
            one: Any = functional.slstm_step if exponential else functional.lstm_step
            h, after = one(x.squeeze(1), R, b, state)
            return h.unsqueeze(1), after
        scan: Any = functional.slstm if exponential else functional.lstm
        h, after = scan(x, R, b, initial_state=state, lengths=lengths, return_state=True)
        return h, after

    def _unpacked(self, state: Tensor | None) -> SLSTMState | LSTMState | None:
        if state is None:
            return None
        kind: Any = SLSTMState if self.config.function == "slstm" else LSTMState
        count, width = len(kind._fields), self.config.num_heads * self.config.head_dim
        if not isinstance(state, Tensor) or state.ndim != 3 or (state.shape[0], state.shape[2]) != (count, width):
            raise ValueError(f"slstm_state must be one tensor ({count}, B, {width}), got {shapes(state)}")
        unpacked: SLSTMState | LSTMState = kind(*state.unflatten(-1, (self.config.num_heads, -1)))
        return unpacked

    def _permuted(self, h: Tensor) -> Tensor:
        """h (B, S, H, D) in the axes of config.output_shape."""
        if self.training:  # dropout draws its mask in the order of memory, which is (S, B, H, D) in the public code
            h = h.transpose(0, 1).contiguous().transpose(0, 1)
        match self.config.output_shape:
            case "BNSH":
                return h.transpose(1, 2)
            case "SBNH":
                return h.transpose(0, 1)
            case "BSH":
                return h.flatten(2)
            case _:  # SBH
                return h.transpose(0, 1).flatten(2)

    def _weights(self) -> tuple[Tensor, Tensor]:
        """R (4, H, D, D), from unit last, and b (4, H, D)."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        """Without what pickle cannot take; their proxies are made anew by __setstate__."""
        return {key: value for key, value in self.__dict__.items() if key not in ("func", "recurrent_kernel", "bias")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name in ("recurrent_kernel", "bias"):
            convert = (getattr(self, f"_{name}_{way}") for way in ("int2ext", "ext2int"))
            setattr(self, name, ParameterProxy(self, f"_{name}", *convert))


class PatchedVanillaSLSTMCell(_SLSTMCell, sLSTMCell_vanilla):
    """Weights as in backend="vanilla": kernel (H, 4 D, D), by gate and unit, from unit last; bias by gate and head."""

    def _weights(self) -> tuple[Tensor, Tensor]:
        heads, dim = self.config.num_heads, self.config.head_dim
        return self._recurrent_kernel_.view(heads, 4, dim, dim).transpose(0, 1), self._bias_.view(4, heads, dim)


class PatchedCudaSLSTMCell(_SLSTMCell, sLSTMCell_cuda):
    """Weights as in backend="cuda": kernel (H, D, 4 D), from unit by gate and unit; bias by head and gate.

    Computed in the dtype of its input, where theirs rounds weights and states to config.dtype.
    """

    def _weights(self) -> tuple[Tensor, Tensor]:
        heads, dim = self.config.num_heads, self.config.head_dim
        R = self._recurrent_kernel_.view(heads, dim, 4, dim).permute(2, 0, 3, 1)
        return R, self._bias_.view(heads, 4, dim).transpose(0, 1)

    @staticmethod
    def check_options(cell: sLSTMCell_cuda, name: str) -> None:
        """Raises ValueError for the options that change what their CUDA kernels compute; "vanilla" ignores them."""
        config = cell.config
        if config.gradient_recurrent_cut or config.gradient_recurrent_clipval is not None:
            raise ValueError(
                f"patch: {name or 'the cell'} cuts or clips recurrent gradients (gradient_recurrent_cut, "
                "gradient_recurrent_clipval), which these kernels do not"
            )


PATCHED: dict[type, type] = {
    CausalConv1d: PatchedCausalConv1d,
    LinearHeadwiseExpand: PatchedLinearHeadwise,
    MultiHeadLayerNorm: PatchedMultiHeadLayerNorm,
    mLSTMCell: PatchedMLSTMCell,
    sLSTMCell_vanilla: PatchedVanillaSLSTMCell,
    sLSTMCell_cuda: PatchedCudaSLSTMCell,
}
