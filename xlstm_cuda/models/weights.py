"""State dicts of xLSTMLarge from one weight_mode to the other."""

from .large.weights import FUSED, fuse_weights, split_weights

__all__ = ["FUSED", "fuse_weights", "split_weights"]
