"""A model's step as a CUDA graph: recorded once, then replayed without the host's work for every kernel."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree

from ...nn.config import require
from .decoding import Generator, Step

Record: TypeAlias = Callable[[Callable[[], None], torch.device], Callable[[], object]]  # body, device -> its replay

_WARM_UPS = 3  # calls before the recording: kernels are loaded, workspaces allocated
_WORTH_RECORDING = 32  # tokens; warm-up and recording cost about as much as so many steps


def require_gpu(device: torch.device) -> None:
    require(device.type == "cuda", f"a CUDA graph needs a model on a GPU, got {device}")


def record_cuda_graph(body: Callable[[], None], device: torch.device) -> Callable[[], object]:
    """Runs `body` on a side stream, then records it; the result replays it on the current stream.

    Raises ValueError for another device than a GPU.
    """
    require_gpu(device)
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                body()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # torch.cuda.graph leaves its stream the current one where the recording fails; the outer context does not.
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph):
            body()
    return graph.replay


class GraphedStep:
    """Called like model.step, without gradients: ids (B, S), state -> logits (B, S, V), the next state.

    The first call of every shape of ids records the step; later ones copy ids into its buffers, and the state unless
    it is the one returned before, and replay. Logits and state returned are these buffers: valid until the next call
    of that shape, which overwrites them. The buffers are like the state that the model returns; one with other dtypes
    or another structure first goes through model.step, which raises where it does not fit.
    Recorded are the addresses of the parameters, and whether autocast was on: after a change, make another one. The
    model must be in evaluation mode.

    record: what records a call; another one where there is no GPU.
    optional: where recording fails, warn and call model.step from then on, instead of raising.
    """

    def __init__(self, model: Generator, *, record: Record | None = None, optional: bool = False) -> None:
        self._model = model
        self._record = record or record_cuda_graph
        self._optional = optional
        self._steps: dict[tuple[torch.Size, torch.dtype], Step] = {}

    @torch.no_grad()
    def __call__(self, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        require(state is not None, "GraphedStep: needs a state, as model.prefill returns it")
        key = ids.shape, ids.dtype
        if key not in self._steps:
            self._steps[key] = self._recorded(ids, state)
        return self._steps[key](ids, state)

    def _recorded(self, ids: Tensor, state: Any) -> Step:
        try:
            return _Recorded(self._model, ids, state, self._record)
        except RuntimeError as error:
            if not self._optional:
                raise
            reason = str(error).partition("\n")[0]
            warnings.warn(f"no CUDA graph of the step, which runs without: {reason}", RuntimeWarning, stacklevel=3)
            return self._model.step


class _Recorded:
    """One recorded step and its buffers."""

    def __init__(self, model: Generator, ids: Tensor, state: Any, record: Record) -> None:
        self._model = model
        following = model.step(ids, state)[1]
        with torch.inference_mode(False):  # calls outside of it may follow, and write there
            self._ids = ids.clone()
            self._state = _pytree.tree_map(torch.clone, following)
        self._form = _form(following)
        self._logits: Tensor
        with _without_autocast_cache():
            self._replay = record(self._run, ids.device)

    def _run(self) -> None:
        self._logits, following = self._model.step(self._ids, self._state)
        self._load(following)

    def _load(self, state: Any) -> None:
        for buffer, leaf in zip(_pytree.tree_leaves(self._state), _pytree.tree_leaves(state), strict=True):
            buffer.copy_(leaf)

    def __call__(self, ids: Tensor, state: Any) -> tuple[Tensor, Any]:
        if state is not self._state:
            if _form(state) != self._form:
                logits, following = self._model.step(ids, state)
                self._load(following)
                return logits, self._state
            self._load(state)
        self._ids.copy_(ids)
        self._replay()
        return self._logits, self._state


def _form(state: Any) -> tuple[Any, ...]:
    """What a copy into buffers would not notice: it broadcasts and casts."""
    leaves, structure = _pytree.tree_flatten(state)
    return structure, [(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves]


@contextmanager
def _without_autocast_cache() -> Iterator[None]:
    """So that casts of weights are part of the recording: the cache's go when the autocast region ends."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


def make_step(model: Generator, device: torch.device, cuda_graph: bool | str, tokens: int) -> Step:
    """model.step, recorded if `cuda_graph` says so; "auto": on a GPU, for so many tokens that it pays off."""
    require(
        cuda_graph in (True, False, "auto"), f"generate: cuda_graph must be True, False or 'auto', got {cuda_graph!r}"
    )
    if cuda_graph == "auto":
        worth = device.type == "cuda" and tokens >= _WORTH_RECORDING
        return GraphedStep(model, optional=True) if worth else model.step
    if not cuda_graph:
        return model.step
    require_gpu(device)  # now, and not in the first step, which a short generation does not have
    return GraphedStep(model)
