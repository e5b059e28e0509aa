"""A classifier of sequences built on torch.nn.LSTM: the same with this library's LSTM, then with sLSTM in its place.

The class of a row is the position of its largest value, whatever its length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from xlstm_cuda.nn import LSTM, sLSTM

LONGEST = 6


class Classifier(nn.Module):
    def __init__(self, rnn: Any, width: int) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(width, LONGEST)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        rows = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        state = self.rnn(rows)[1]  # (h, c), and n, m of an sLSTM: h (layers * directions, B, hidden_size)
        return self.head(torch.cat([state[0][-2], state[0][-1]], 1))


def batch(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    lengths = torch.randint(2, LONGEST + 1, (rows,))
    x = torch.rand(rows, LONGEST).masked_fill(torch.arange(LONGEST) >= lengths[:, None], 0)
    return x[..., None], lengths, x.argmax(1)


def train(model: Classifier) -> float:
    """The accuracy after a short training."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(150):
        x, lengths, target = batch(64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x, lengths), target).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    x, lengths, target = batch(1000)
    return (model(x, lengths).argmax(1) == target).float().mean().item()


if __name__ == "__main__":
    torch.manual_seed(0)
    options: dict[str, Any] = {"bidirectional": True, "batch_first": True}
    theirs = Classifier(nn.LSTM(1, 32, **options), 64)
    ours = Classifier(LSTM(1, 32, **options), 64)
    ours.load_state_dict(theirs.state_dict())
    x, lengths, _ = batch(5)
    torch.testing.assert_close(ours(x, lengths), theirs(x, lengths), rtol=1e-4, atol=1e-5)
    print(f"torch.nn.LSTM     accuracy {train(theirs):.2f}")
    print(f"xlstm_cuda LSTM   accuracy {train(ours):.2f}")
    print(f"xlstm_cuda sLSTM  accuracy {train(Classifier(sLSTM(1, 32, num_heads=4, **options), 64)):.2f}")
