"""What the library needs to run on a GPU, and calls in a CUDA graph."""

from __future__ import annotations

import torch

from xlstm_cuda import _ops

from .calls import Builder, Call
from .ops import Outputs, Shape, Tensors

# what a call of the public functions needs of torch.ops.xlstm_cuda
KERNELS: dict[str, tuple[str, ...]] = {
    "mlstm": ("mlstm_fwd", "mlstm_bwd"),
    "mlstm_step": ("mlstm_step", "mlstm_step_"),
    **dict.fromkeys(("slstm", "lstm"), ("recurrent_fwd", "recurrent_bwd")),
    **dict.fromkeys(("slstm_step", "lstm_step"), ("recurrent_step",)),
    "causal_conv1d": ("causal_conv1d_fwd", "causal_conv1d_bwd"),
    "causal_conv1d_step": ("causal_conv1d_step_",),
    "multihead_norm_gate": ("multihead_norm_gate_fwd", "multihead_norm_gate_bwd"),
    "gated_activation": ("gated_activation_fwd", "gated_activation_bwd"),
    "soft_cap": ("soft_cap_fwd", "soft_cap_bwd"),
    "headwise_linear": ("headwise_linear_fwd", "headwise_linear_bwd"),
}
# the functions that the layers of a model call
_LARGE = ("mlstm", "mlstm_step", "multihead_norm_gate", "gated_activation", "soft_cap")
MODELS: dict[str, tuple[str, ...]] = {
    "lm": ("mlstm", "slstm", "causal_conv1d", "multihead_norm_gate", "headwise_linear", "gated_activation"),
    **dict.fromkeys(("large_prefill", "large_step", "large_generate"), _LARGE),
}


def has_cuda_kernel(kernel: str) -> bool:
    """Whether torch.ops.xlstm_cuda.<kernel> runs on CUDA tensors."""
    return _ops.has_kernel(_ops.NAMESPACE, kernel, "cuda")


def without_cuda() -> str | None:
    if not torch.cuda.is_available():
        return "needs a CUDA device"
    return None if _ops.has_cuda() else "is not in this build of xlstm_cuda"


def without_kernel(op: str, shape: Shape) -> str | None:
    kernels = [kernel for function in MODELS.get(op, (op,)) for kernel in KERNELS[function]]
    missing = [kernel for kernel in kernels if not has_cuda_kernel(kernel)]
    return f"has no CUDA kernel of {', '.join(missing)}" if missing else None


def graphed(builder: Builder) -> Builder:
    """The builder's call captured in a CUDA graph, alone; to run it is to launch the graph."""

    def build(t: Tensors) -> Call:
        call = builder(t)
        before = {name: x.clone() for name, x in call.leaves.items()}
        graph, outputs = _captured(call)
        for name, x in call.leaves.items():  # a state overwritten while warming up
            x.copy_(before[name])

        def run() -> Outputs:
            graph.replay()
            return outputs

        return Call(run, call.leaves, call.canonical, call.nbytes)

    return build


@torch.no_grad()
def _captured(call: Call) -> tuple[torch.cuda.CUDAGraph, Outputs]:
    """The graph, and the tensors that its launches write to."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is loaded or allocated once cannot be captured
        for _ in range(3):
            call.run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call.run()
    return graph, outputs
