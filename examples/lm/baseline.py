"""The yardstick: a language model around torch.nn.LSTM with as many parameters as the xLSTM."""

from __future__ import annotations

import math

from torch import Tensor, nn


class LSTMLanguageModel(nn.Module):
    """Embedding, torch.nn.LSTM, linear head; the embedding is as wide as the hidden state."""

    def __init__(self, vocab_size: int, hidden_size: int, num_layers: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.lstm = nn.LSTM(hidden_size, hidden_size, num_layers, batch_first=True)
        self.head = nn.Linear(hidden_size, vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, S) -> logits (B, S, vocab_size)."""
        return self.head(self.lstm(self.embedding(ids))[0])


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def lstm_parameters(vocab_size: int, hidden_size: int, num_layers: int = 1) -> int:
    """Parameters of LSTMLanguageModel: per layer two (4D, D) matrices and two (4D,) biases; embedding; head."""
    return num_layers * 8 * hidden_size * (hidden_size + 1) + (2 * hidden_size + 1) * vocab_size


def matching_lstm(vocab_size: int, parameters: int, num_layers: int = 1) -> LSTMLanguageModel:
    """The LSTM language model whose parameter count is closest to `parameters`."""
    sizes = range(1, 1 + math.isqrt(parameters))  # 8 D^2 is less than `parameters`
    hidden = min(sizes, key=lambda size: abs(lstm_parameters(vocab_size, size, num_layers) - parameters))
    return LSTMLanguageModel(vocab_size, hidden, num_layers)
