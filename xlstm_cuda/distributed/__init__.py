"""Sequences that are spread over several processes: each rank of a group holds a shard of the tokens.

    torchrun --nproc-per-node 4 program.py
    h = xlstm_cuda.distributed.mlstm(q, k, v, i, f)  # each rank its own tokens, in the order of the ranks

A total loss is the sum of the losses of all ranks: gradients are those of that sum.
"""

from .conv import causal_conv1d
from .mlstm import mlstm

__all__ = ["causal_conv1d", "mlstm"]
