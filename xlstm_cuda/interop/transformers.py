"""Hugging Face transformers: xLSTMModel and xLSTMForCausalLM on the functions of this library.

`patch()` is for models built from then on, `patch(model)` for one that is there already. Weights, state_dict keys and
files stay what they are. Works with transformers 4.57 and 5, whether or not the package xlstm is installed.

Beside the kernels one thing changes: tokens that attention_mask marks as padding before the first real token of a row
leave no trace in the state (transformers ignores the mask of this model), so a padded batch gives what its rows give
one by one.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from .._states import MLSTMState
from ..nn.linear import DecodingLinear

__all__ = ["MLSTMBackend", "disable", "enable", "patch", "unpatch"]

# What the layers call their backend's inputs: with the package xlstm, and without it.
_INPUTS = (("q", "query"), ("k", "key"), ("v", "value"), ("i", "igate"), ("f", "fgate"))
_ARGUMENTS = ("input_ids", "inputs_embeds", "cache_params", "use_cache")  # of xLSTMModel.forward, in its order

_originals: dict[tuple[type, str], Any] = {}  # class attributes that patch() replaced
_handing_on: set[type] = set()  # classes whose prepare_inputs_for_generation keeps the mask


def patch(model: nn.Module | None = None) -> None:
    """Run xLSTM models of transformers on `functional.mlstm`, `mlstm_step` and `gated_activation`.

    Without a model: every xLSTMModel (and what holds one, such as xLSTMForCausalLM) that is built after the call, also
    by from_pretrained. With a model: this one. Doing it twice does no harm.

    Raises:
        ImportError: transformers is missing or has no xLSTM model.
        TypeError: `model` is no module.
        ValueError: there is no xLSTMModel in `model`, or it has sigmoid input gates.
    """
    modeling = _modeling()
    if model is None:
        _replace(modeling.xLSTMModel, "__init__", _swapping)
        _replace(modeling.xLSTMForCausalLM, "__init__", _swapping_head)
    else:
        parts = _models_in(model, modeling)
        for part in parts:
            _check_gates(part)
        for part in parts:
            _swap(part)
        for head in _heads_in(model, modeling):
            _exchange(head, {nn.Linear: DecodingLinear})
    _hand_masks_on(modeling)


def unpatch(model: nn.Module | None = None) -> None:
    """Undo `patch`: without a model for those that are built after the call, with one for this model.

    Raises: as `patch`.
    """
    modeling = _modeling()
    if model is not None:
        for part in _models_in(model, modeling):
            _swap_back(part)
        for head in _heads_in(model, modeling):
            _exchange(head, {DecodingLinear: nn.Linear})
        return
    for (cls, name), original in _originals.items():
        setattr(cls, name, original)
    _originals.clear()


def enable(model: nn.Module | None = None) -> None:
    """The former name of `patch`. Deprecated: it keeps working, but new code uses the other."""
    patch(model)


def disable(model: nn.Module | None = None) -> None:
    """The former name of `unpatch`. Deprecated: it keeps working, but new code uses the other."""
    unpatch(model)


class MLSTMBackend(nn.Module):
    """Takes the place of `mlstm_layer.mlstm_backend`, whose call it accepts; no parameters, no buffers.

    The config's kernels, chunk size, mode and inference_state_dtype have no effect: any length works, with and without
    gradients, and the state comes back always, in float32 at least.
    """

    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        config: Any = stock.config
        self.eps: float = config.eps
        self.stock = stock

    @property
    def _step_eps(self) -> float:
        """The eps of its decode steps, all of which have exponential gates."""
        return self.eps

    def forward(
        self,
        c_initial: Tensor | None = None,
        n_initial: Tensor | None = None,
        m_initial: Tensor | None = None,
        return_last_states: bool | None = None,
        mode: str | None = None,
        **inputs: Tensor,
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """q, k (B, H, S, Dqk), v (B, H, S, Dv), i, f (B, H, S) and the state C (B, H, Dqk, Dv), n (B, H, Dqk),
        m (B, H, 1) -> h (B, H, S, Dv) and the next state. return_last_states and mode are ignored.
        """
        q, k, v, i, f = (inputs[short] if short in inputs else inputs[long] for short, long in _INPUTS)
        state = None
        if c_initial is not None and n_initial is not None and m_initial is not None:
            state = MLSTMState(c_initial, n_initial, m_initial.squeeze(-1))
            if torch.is_grad_enabled():  # the model overwrites its cache, which the backward may still need
                state = MLSTMState(*(part.clone() for part in state))
        if q.shape[2] == 1:
            q, k, v, i, f = (x.squeeze(2) for x in (q, k, v, i, f))
            h, state = functional.mlstm_step(q, k, v, i, f, state, eps=self.eps)
            h = h.unsqueeze(2)
        else:
            h, state = functional.mlstm(q, k, v, i, f, initial_state=state, return_state=True, eps=self.eps)
        return h, (state.C, state.n, state.m.unsqueeze(-1))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _hand_masks_on(_modeling())  # of a pickle, where patch() may never have been called

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


def _modeling() -> ModuleType:
    """The module of transformers that defines the models."""
    try:
        from transformers.models.xlstm import modeling_xlstm
    except ModuleNotFoundError as error:
        if error.name == "transformers":
            raise ImportError(
                "xlstm_cuda.interop.transformers needs the package transformers: pip install 'transformers>=4.57'"
            ) from error
        if error.name == "transformers.models.xlstm":
            import transformers

            raise ImportError(
                f"xlstm_cuda.interop.transformers: transformers {transformers.__version__} has no xLSTM model, "
                "4.57 or later is needed"
            ) from error
        raise
    return modeling_xlstm


def _models_in(model: nn.Module, modeling: ModuleType) -> list[nn.Module]:
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"xlstm_cuda: a model (an nn.Module) or nothing is expected, got {what}")
    found = [part for part in model.modules() if isinstance(part, modeling.xLSTMModel)]
    if not found:
        raise ValueError(f"xlstm_cuda: there is no xLSTMModel of transformers in this {type(model).__name__}")
    return found


def _heads_in(model: nn.Module, modeling: ModuleType) -> list[nn.Module]:
    return [part.lm_head for part in model.modules() if isinstance(part, modeling.xLSTMForCausalLM)]


def _replace(cls: type, name: str, wrapper: Callable[[Any], Any]) -> None:
    """Replace a method by wrapper(method), once."""
    if (cls, name) not in _originals:
        _originals[cls, name] = getattr(cls, name)
        setattr(cls, name, wrapper(_originals[cls, name]))


def _swapping(init: Callable[..., None]) -> Callable[..., None]:
    """xLSTMModel.__init__, and then our backends."""

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        _check_gates(self)
        _swap(self)

    return wrapped


def _swapping_head(init: Callable[..., None]) -> Callable[..., None]:
    """xLSTMForCausalLM.__init__, and then our head."""

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        _exchange(self.lm_head, {nn.Linear: DecodingLinear})

    return wrapped


def _hand_masks_on(modeling: ModuleType) -> None:
    """For good, since models outlive unpatch(); it does nothing to models that are not ours."""
    causal: Any = modeling.xLSTMForCausalLM
    if (
        "prepare_inputs_for_generation" in vars(causal) and causal not in _handing_on
    ):  # transformers 4: it drops the mask
        _handing_on.add(causal)
        causal.prepare_inputs_for_generation = _keeping_the_mask(causal.prepare_inputs_for_generation)


def _keeping_the_mask(prepare: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """prepare_inputs_for_generation that hands the mask on to models with our hook."""

    @functools.wraps(prepare)
    def wrapped(self: Any, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> dict[str, Any]:
        inputs = prepare(self, input_ids, attention_mask, **kwargs)
        return inputs if _hook_id(self.backbone) is None else {**inputs, "attention_mask": attention_mask}

    return wrapped


def _check_gates(model: Any) -> None:
    for block in model.blocks:
        backend = block.mlstm_layer.mlstm_backend
        if not isinstance(backend, MLSTMBackend) and "siging" in (kernel := backend.config.chunkwise_kernel):
            raise ValueError(
                f"xlstm_cuda: config.chunkwise_kernel={kernel!r} means sigmoid input gates, "
                "which transformers uses for prompts but not for single tokens; choose one with exponential gates"
            )


def _swap(model: Any) -> None:
    """Our layers, norms and backends, and the hook that sees the mask, in an xLSTMModel."""
    _exchange(model, _layers())
    for block in model.blocks:
        layer = block.mlstm_layer
        if not isinstance(layer.mlstm_backend, MLSTMBackend):
            layer.mlstm_backend = MLSTMBackend(layer.mlstm_backend)
    if _hook_id(model) is None:
        model.register_forward_pre_hook(_empty_padding, with_kwargs=True)


def _swap_back(model: Any) -> None:
    _exchange(model, {patched: original for original, patched in _layers().items()})
    for block in model.blocks:
        layer = block.mlstm_layer
        if isinstance(layer.mlstm_backend, MLSTMBackend):
            layer.mlstm_backend = layer.mlstm_backend.stock
    if (hook := _hook_id(model)) is not None:
        del model._forward_pre_hooks[hook], model._forward_pre_hooks_with_kwargs[hook]


def _layers() -> dict[type, type]:
    """Their classes and ours."""
    from .transformers_layers import PATCHED

    return PATCHED


def _exchange(model: nn.Module, table: dict[type, type]) -> None:
    """Parameters, hooks and configs stay where they are; so do modules of subclasses."""
    for module in model.modules():
        if type(module) in table:
            module.__class__ = table[type(module)]


def _hook_id(model: nn.Module) -> int | None:
    return next((key for key, hook in model._forward_pre_hooks.items() if hook is _empty_padding), None)


def _empty_padding(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Before xLSTMModel.forward: zero the embeddings of padding.

    Without biases a zero stays zero through every norm, layer and feedforward, and k = v = 0 adds nothing to an empty
    state. Nothing else has to know the mask, not even a block that checkpointing computes again.
    """
    kwargs = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
    mask = kwargs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        return (), kwargs
    if model.config.use_bias:
        if not mask.all():
            warnings.warn("xlstm_cuda: attention_mask is ignored by xLSTM models with use_bias=True", stacklevel=2)
        return (), kwargs
    x = kwargs.pop("inputs_embeds", None)
    ids = kwargs.pop("input_ids", None)
    if (x is None) == (ids is None):  # the model's own error
        return (), {**kwargs, "inputs_embeds": x, "input_ids": ids}
    if x is None:
        x = model.embeddings(ids)
    if x.ndim == 3 and (mask.shape[0] != x.shape[0] or mask.shape[1] < x.shape[1]):
        raise ValueError(
            f"xlstm_cuda: attention_mask must be (B, S) of all tokens so far, at least {tuple(x.shape[:2])}, "
            f"got {tuple(mask.shape)}"
        )
    padding = mask[:, -x.shape[1] :, None] == 0  # with a cache the mask is of all tokens so far
    return (), {**kwargs, "inputs_embeds": x.masked_fill(padding.to(x.device), 0)}
