"""Ways to run a call on a device (plan.h in csrc/cuda/recurrent and mlstm_chunkwise): a test chooses one by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from tests.support.executor import CAPABILITY
from xlstm_cuda import _ops


def has_clusters(namespace: str) -> bool:
    """Whether the device of this namespace, imitated or real, has clusters of blocks."""
    return torch.cuda.get_device_capability() >= (9, 0) if namespace == _ops.NAMESPACE else CAPABILITY >= 90


@contextmanager
def only(variant: str, namespace: str) -> Iterator[None]:
    """Calls of this namespace use this variant ("cluster units=32" says more), or fail. The test is skipped where no
    device could have it."""
    if variant.startswith("cluster") and not has_clusters(namespace):
        pytest.skip("a device without clusters")
    with requested(_ops.library(namespace).recurrent_variant, variant):
        yield


@contextmanager
def requested(use: Callable[[str], str], words: str) -> Iterator[None]:
    """Calls run in this way, by recurrent_variant or mlstm_variant; afterwards as before."""
    before = use(words)
    try:
        yield
    finally:
        use(before)
