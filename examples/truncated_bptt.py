"""Truncated backpropagation through time: a long stream in short windows, whose state is carried from one to the next.

The stream tells now and then which of two symbols is the current one; the model is asked for it after every token.
Mostly that was said many windows ago: without the carried state it can only be guessed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from xlstm_cuda.nn import sLSTM

WINDOW = 8
rnn, head = sLSTM(3, 16, batch_first=True), nn.Linear(16, 2)
parameters = [*rnn.parameters(), *head.parameters()]


def stream(rows: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Tokens 0: nothing, 1 and 2: the current symbol; and the current symbol (0 or 1) after each token."""
    told = torch.where(torch.rand(rows, tokens) < 0.03, torch.randint(1, 3, (rows, tokens)), 0)
    told[:, 0] = torch.randint(1, 3, (rows,))
    last = torch.where(told > 0, torch.arange(tokens), 0).cummax(1).values
    return told, told.gather(1, last) - 1


def windows(told: Tensor, carry: bool) -> Any:
    """Logits and place of each window. Its gradient ends at its first token, its state does not."""
    state = None
    for start in range(0, told.shape[1], WINDOW):
        place = slice(start, start + WINDOW)
        y, state = rnn(nn.functional.one_hot(told[:, place], 3).float(), state)
        yield head(y), place
        state = tuple(s.detach() for s in state) if carry else None


def train(carry: bool) -> float:
    """The accuracy on a stream of its own."""
    torch.manual_seed(0)
    rnn.reset_parameters()
    head.reset_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=0.05)
    told, symbol = stream(32, 300 * WINDOW)
    for logits, place in windows(told, carry):
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits.flatten(0, 1), symbol[:, place].flatten()).backward()
        optimizer.step()
    told, symbol = stream(32, 50 * WINDOW)
    with torch.no_grad():
        guess = torch.cat([logits.argmax(-1) for logits, _ in windows(told, carry)], 1)
    return (guess == symbol).float().mean().item()


if __name__ == "__main__":
    carried, emptied = train(carry=True), train(carry=False)
    print(f"states carried from window to window: accuracy {carried:.2f}\nempty states in every window: {emptied:.2f}")
    assert carried > 0.9 > emptied
