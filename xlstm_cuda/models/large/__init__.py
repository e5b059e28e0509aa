"""xLSTMLarge, the architecture of xLSTM 7B (arXiv 2503.13427)."""

from .config import xLSTMLargeConfig
from .model import LargeState, xLSTMLarge

__all__ = ["LargeState", "xLSTMLarge", "xLSTMLargeConfig"]
