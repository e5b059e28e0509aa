"""xLSTM models in vLLM, on these kernels: a plug-in, which vLLM finds by itself where this package is installed.

    vllm serve FOLDER  # with the checkpoint of an xLSTMForCausalLM, as xLSTM 7B's, or python -m xlstm_cuda convert's

States are kept in vLLM's pages, one for each layer and request. Prompts that are cut into chunks, and prompts beside
requests that decode, are one call of a kernel each.
"""

from __future__ import annotations

ARCHITECTURE = "xLSTMForCausalLM"

__all__ = ["ARCHITECTURE", "register"]


def register() -> None:
    """Makes the architecture known to vLLM, by name: nothing is imported before a model of it is wanted.

    vLLM calls it in each of its processes (entry point vllm.general_plugins). ImportError without vLLM.
    """
    from vllm import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, "xlstm_cuda.interop.vllm.model:XLSTMForCausalLM")
