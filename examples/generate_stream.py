"""Text as it is generated, and many requests at once in a few slots of one batched state.

Trains a tiny byte-level model on one sentence for a few seconds, prints its continuation byte by byte, then decodes
prompts of different lengths beside each other; every one gets what it would get alone.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from xlstm_cuda.models import SlotDecoder, generate, stream, xLSTMLMModel, xLSTMLMModelConfig

TEXT = b"the quick brown fox jumps over the lazy dog. "


def encode(text: str) -> Tensor:
    return torch.tensor(list(text.encode()))


def decode(ids: Tensor) -> str:
    return bytes(ids.tolist()).decode(errors="replace")


def train(steps: int = 120) -> xLSTMLMModel:
    torch.manual_seed(0)
    model = xLSTMLMModel(xLSTMLMModelConfig.from_ratio("1:1", 2, embedding_dim=64, vocab_size=256))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    data = torch.tensor(list(TEXT * 3))
    for _ in range(steps):
        starts = torch.randint(len(TEXT), (8,))
        rows = torch.stack([data[start : start + 65] for start in starts])
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def main() -> None:
    model = train()
    print("streamed: the quick", end="")
    for new in stream(model, encode("the quick")[None], 60, temperature=0, eos_id=ord(".")):
        print(decode(new), end="", flush=True)
    print("\nslots:")
    decoder = SlotDecoder(model, capacity=2, temperature=0, eos_id=ord("."))
    prompts = ["fox", "the lazy", "over", "quick brown"]
    requests = {decoder.submit(encode(prompt), 60): prompt for prompt in prompts}
    decoder.run()
    for number, prompt in requests.items():
        ids = decoder.result(number)
        assert torch.equal(ids, generate(model, encode(prompt)[None], 60, temperature=0, eos_id=ord("."))[0])
        print(f"  {prompt!r} -> {decode(ids)!r}")


if __name__ == "__main__":
    main()
