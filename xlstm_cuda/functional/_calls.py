"""From a public function, below its checks, to the ops: by them alone, with gradients, or as a node of a program.

A compiled op has no gradient. So torch.export, whose programs outlive the process, records an op of another kind,
`differentiable_...`. Its kernel is the Python of a call in eager mode (CompositeImplicitAutograd): where a program runs
it is differentiated in every way, and lowered, by `run_decompositions` or AOTInductor, it is compiled ops and nothing
else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.compiler import is_exporting

from xlstm_cuda import _checks, _ops
from xlstm_cuda._transforms import FirstOrder, differentiable

# outputs = call(namespace, options, inputs); options: a NamedTuple
Call: TypeAlias = "Callable[[str, Any, Sequence[Tensor | None]], Sequence[Tensor]]"

_library = torch.library.Library(_ops.NAMESPACE, "FRAGMENT")
_SAVES = re.compile(r", bool (keep|save)\b[^,)]*")  # of an op: whether to return what its backward pass reads
_DEFAULTS = re.compile(r"=[^,)]*")  # the dispatcher leaves an argument out that has the value of its default


def computed(function: type[FirstOrder], namespace: str, options: Any, inputs: Sequence[Tensor | None]) -> Any:
    """The outputs of a first-order function, by its op alone where nothing is differentiated."""
    every = function.laid_out(inputs)
    if _checks.needs_grad(*every):
        return differentiable(function, namespace, options, every)
    return function.values(namespace, options, *every)


def exportable(compiled: str, options: Any, call: Call) -> Call:
    """call, as one node where torch.export records. compiled: an op of the same arguments; options: their class."""
    if not _ops.has_kernel(_ops.NAMESPACE, compiled, "cpu"):  # the extension did not load
        return call
    name, count = f"differentiable_{compiled.removesuffix('_fwd')}", len(options._fields)

    def kernel(*arguments: Any) -> list[Tensor]:
        split = len(arguments) - count
        return list(call(_ops.NAMESPACE, options(*arguments[split:]), arguments[:split]))

    _library.define(name + _signature(compiled), tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, kernel, "CompositeImplicitAutograd")
    _library.impl(name, kernel, "FuncTorchDynamicLayerFrontMode")  # before a transform of torch.func takes it apart
    op = getattr(getattr(torch.ops, _ops.NAMESPACE), name).default

    def recorded(namespace: str, options: Any, inputs: Sequence[Tensor | None]) -> Sequence[Tensor]:
        if is_exporting() and namespace == _ops.NAMESPACE:
            outputs: list[Tensor] = op(*inputs, *options)
            return outputs
        return call(namespace, options, inputs)

    return recorded


def _signature(compiled: str) -> str:
    schema = str(getattr(_ops.library(_ops.NAMESPACE), compiled).default._schema)
    arguments = _DEFAULTS.sub("", _SAVES.sub("", schema[schema.index("(") : schema.index(" -> ")]))
    return f"{arguments} -> Tensor[]"
