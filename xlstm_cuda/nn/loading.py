"""Loading checkpoints into models: all that is wrong in one error, and the model untouched by a wrong checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

# What the names in a state dict tell of where it came from; the first that fits is named in the error.
_LAYOUTS = (
    (r"module\.", "a model inside DataParallel or DistributedDataParallel (take model.module.state_dict())"),
    (r"_orig_mod\.", "a model compiled by torch.compile (take model._orig_mod.state_dict())"),
    (r"backbone\.embeddings\.", "xLSTMForCausalLM of Hugging Face transformers (see python -m xlstm_cuda convert)"),
    (r"backbone\.blocks\.\d+\.mlstm_layer\.qkv_opreact\.", "xLSTMLarge with weight_mode='fused'"),
    (r"backbone\.blocks\.\d+\.mlstm_layer\.", "xLSTMLarge with weight_mode='single'"),
    (r"xlstm_block_stack\.", "xLSTMLMModel"),
    (r"blocks\.\d+\.xlstm\.", "xLSTMBlockStack"),
    (r"(.*\.)?weight_ih_l0$", "torch.nn.LSTM"),
)


def likely_layout(keys: Iterable[str]) -> str | None:
    """The kind of model that a state dict with these keys seems to be of; None if nothing is recognised."""
    keys = list(keys)
    return next((name for pattern, name in _LAYOUTS if any(re.match(pattern, key) for key in keys)), None)


class CheckedLoading(nn.Module):
    """Base of models that are loaded from checkpoints, also from those in the other layouts that `own_layout` knows."""

    def own_layout(self, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """state_dict with the keys and shapes of this model, for every layout that it understands; no side effects.

        What it does not understand stays as it is: `load_state_dict` then complains of it.
        """
        return dict(state_dict)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch.nn.Module.load_state_dict, except that after an error the model is as it was before.

        Raises RuntimeError that lists all keys that are missing, extra (both with strict only) or of the wrong shape,
        and names the layout that the checkpoint seems to have.
        """
        found = self.own_layout(state_dict)
        problems = _problems(self.state_dict(), found, strict)
        if problems:
            layout = likely_layout(state_dict)
            hint = f"\n  the checkpoint looks like {layout}" if layout else ""
            raise RuntimeError(
                f"{type(self).__name__}: this checkpoint does not fit, nothing was loaded:{hint}" + "".join(problems)
            )
        if hasattr(state_dict, "_metadata"):  # torch keeps versions of modules there
            found = _WithMetadata(found)
            found._metadata = state_dict._metadata
        return super().load_state_dict(found, strict, assign)


class _WithMetadata(dict[str, Any]):
    _metadata: Any


def _problems(expected: Mapping[str, Any], found: Mapping[str, Any], strict: bool) -> list[str]:
    missing = [f"\n  missing: {key} {_shape(expected[key])}" for key in expected if key not in found]
    extra = [f"\n  extra: {key} {_shape(found[key])}" for key in found if key not in expected]
    wrong = [
        f"\n  wrong shape: {key} is {_shape(found[key])}, expected {_shape(expected[key])}"
        for key in expected
        if key in found and _shape(found[key]) != _shape(expected[key])
    ]
    return [*missing, *extra, *wrong] if strict else wrong


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
