"""Fused sLSTM, LSTM and chunkwise mLSTM kernels for PyTorch."""
