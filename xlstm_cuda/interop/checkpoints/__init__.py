"""Checkpoints of xLSTMLarge (xLSTM 7B): from one to another of the layouts of Hugging Face, NX-AI and this library."""

from .conversion import Summary, convert
from .loading import load_large

__all__ = ["Summary", "convert", "load_large"]
