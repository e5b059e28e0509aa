"""The ways to run a recurrent scan on a device (csrc/cuda/recurrent/plan.h): a test chooses one by name."""

from __future__ import annotations

from collections.abc import Iterator
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
    use = _ops.library(namespace).recurrent_variant
    before = use(variant)
    try:
        yield
    finally:
        use(before)
