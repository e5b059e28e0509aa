"""Whether torch.autocast is on, and how to leave it: the same in eager mode and under torch.compile."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

# Devices that know autocast. torch.amp.is_autocast_available cannot be traced by torch 2.11, and without it
# torch.is_autocast_enabled raises for other devices, such as meta.
_DEVICES = ("cpu", "cuda", "mps", "xpu")


def enabled(device_type: str) -> bool:
    """Whether autocast is on for tensors on such a device."""
    return device_type in _DEVICES and torch.is_autocast_enabled(device_type)


def disabled(device_type: str) -> AbstractContextManager[Any]:
    """Context manager: no autocast for tensors on such a device. It costs nothing where autocast is off."""
    return torch.autocast(device_type, enabled=False) if enabled(device_type) else nullcontext()
