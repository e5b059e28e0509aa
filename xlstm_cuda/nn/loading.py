"""Loading checkpoints into models: all that is wrong in one error, and the model untouched by a wrong checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

# Names in a state dict, and where they come from. The error names the first that fits. Those of the layouts in
# interop/checkpoints/layouts are here too, which nothing in nn may import: tests/interop/test_layouts.py compares them.
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

        Raises RuntimeError that lists all keys that are missing, extra (both with strict only) or of the wrong shape or
        kind (integers for floats, sparse, meta), and names the layout that the checkpoint seems to have.
        Raises TypeError where state_dict is no mapping from text.
        """
        if not isinstance(state_dict, Mapping) or not all(isinstance(key, str) for key in state_dict):
            what = "dict with other keys than text" if isinstance(state_dict, Mapping) else type(state_dict).__name__
            raise TypeError(f"{type(self).__name__}: state_dict must be a dict of names and tensors, got a {what}")
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
    wrong += [
        f"\n  wrong kind: {key} is {_kind(found[key])}, expected {_kind(value)}"
        for key, value in expected.items()
        if isinstance(value, Tensor) and isinstance(found.get(key), Tensor) and not _fits(found[key], value)
    ]
    return [*missing, *extra, *wrong] if strict else wrong


def _fits(value: Tensor, expected: Tensor) -> bool:
    """Whether torch can copy or assign it: otherwise it stops with half of the tensors loaded, or loses a part."""
    same = value.layout == expected.layout and value.is_floating_point() == expected.is_floating_point()
    return same and (expected.is_meta or not value.is_meta)


def _kind(value: Tensor) -> str:
    return f"{'meta ' if value.is_meta else ''}{value.dtype} {value.layout}"


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
