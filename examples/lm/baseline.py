"""The yardstick: a language model around torch.nn.LSTM with as many parameters as the xLSTM."""

from __future__ import annotations

from torch import Tensor, nn


class LSTMLanguageModel(nn.Module):
    """Embedding, torch.nn.LSTM, linear head; the embedding is as wide as the hidden state."""

    def __init__(self, vocab_size: int, hidden_size: int, num_layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, hidden_size)
        self.lstm = nn.LSTM(hidden_size, hidden_size, num_layers, batch_first=True)
        self.head = nn.Linear(hidden_size, vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, S) -> logits (B, S, vocab_size)."""
        return self.head(self.lstm(self.embedding(ids))[0])


def parameter_count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def lstm_parameters(vocab_size: int, hidden_size: int, num_layers: int = 2) -> int:
    """Parameters of LSTMLanguageModel: per layer two (4D, D) matrices and two (4D,) biases; embedding; head."""
    return num_layers * 8 * hidden_size * (hidden_size + 1) + (2 * hidden_size + 1) * vocab_size


def matching_lstm(vocab_size: int, parameters: int, num_layers: int = 2) -> LSTMLanguageModel:
    """The LSTM language model whose parameter count is closest to `parameters`."""
    hidden = 1
    while lstm_parameters(vocab_size, hidden + 1, num_layers) <= parameters:
        hidden += 1
    if lstm_parameters(vocab_size, hidden + 1, num_layers) - parameters < parameters - lstm_parameters(
        vocab_size, hidden, num_layers
    ):
        hidden += 1
    return LSTMLanguageModel(vocab_size, hidden, num_layers)
