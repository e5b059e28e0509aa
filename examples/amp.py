"""Mixed precision: bfloat16 autocast, and float16 autocast with a gradient scaler.

Weights, gates and states stay float32; matrix products and the kernels' data are of the low precision.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from xlstm_cuda.models import xLSTMLMModel, xLSTMLMModelConfig

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def train(dtype: torch.dtype) -> list[float]:
    """Losses of 60 steps on one batch."""
    torch.manual_seed(0)
    config = xLSTMLMModelConfig.from_ratio("1:1", 2, embedding_dim=32, vocab_size=19)
    model = xLSTMLMModel(config).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler(DEVICE, enabled=dtype == torch.float16)  # float16 gradients underflow without it
    ids = torch.randint(19, (4, 25), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
            logits = model(ids[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)  # skipped where a gradient overflowed
        scaler.update()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        losses = train(dtype)
        print(f"{str(dtype):15} loss {losses[0]:.3f} to {losses[-1]:.3f}")
        assert losses[-1] < 0.3 * losses[0]
