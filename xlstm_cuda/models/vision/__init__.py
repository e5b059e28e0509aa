"""Vision-LSTM (ViL, arXiv 2406.04303): images as rows of patches, read in alternating directions."""

from .model import VisionLSTM, VisionLSTM2

__all__ = ["VisionLSTM", "VisionLSTM2"]
