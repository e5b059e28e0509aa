"""Graphs of torch's exporter to ONNX, run by onnxruntime."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

BOUND = 1e-5  # of the largest value: 84 times half a unit in the last place of float32


class Graph:
    """A checked ONNX graph of module(*args), with a session on one thread."""

    def __init__(self, module: torch.nn.Module, args: tuple[Any, ...], dynamic_shapes: Any = None) -> None:
        import onnx
        import onnxruntime

        self.module = module.eval()
        program = torch.onnx.export(module, args, dynamo=True, verbose=False, dynamic_shapes=dynamic_shapes)
        file = io.BytesIO()
        program.save(file)
        self.model = onnx.load_from_string(file.getvalue())
        onnx.checker.check_model(self.model, full_check=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self.session = onnxruntime.InferenceSession(file.getvalue(), options)

    def __call__(self, *args: Any) -> list[Tensor]:
        """The outputs, flat."""
        inputs = [x.numpy() for x in pytree.tree_leaves(args)]
        names = [x.name for x in self.session.get_inputs()]
        outputs = self.session.run(None, dict(zip(names, inputs, strict=True)))
        return [torch.from_numpy(np.array(y)) for y in outputs]

    def check(self, *args: Any) -> list[Tensor]:
        """The outputs, all of which are the module's."""
        with torch.no_grad():
            expected = pytree.tree_leaves(self.module(*args))
        found = self(*args)
        for number, (y, reference) in enumerate(zip(found, expected, strict=True)):
            assert y.dtype == reference.dtype
            assert y.shape == reference.shape
            error, size = ((y - reference).abs().max(), reference.abs().max()) if y.numel() else (0.0, 0.0)
            # A stabiliser is a difference of numbers of the size of 1: one or two of them may be nearly 0.
            size = max(size, 0.1) if y.numel() <= 2 else size
            assert error <= BOUND * size, f"output {number}: error {error:.1e} of {size:.1e}"
        return found

    def operators(self) -> list[str]:
        """Of all nodes, those of subgraphs included."""
        return list(_operators(self.model.graph))


def _operators(graph: Any) -> Iterator[str]:
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            yield from _operators(attribute.g)
