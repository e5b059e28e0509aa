"""The former place of xlstm_cuda.models.large.weights."""

from .large.weights import FUSED, fuse_weights, split_weights

__all__ = ["FUSED", "fuse_weights", "split_weights"]
