"""One model in two processes: with DistributedDataParallel, then sharded with FSDP2. The losses are the same.

It starts the processes itself, on the CPU. On several GPUs: torchrun, dist.init_process_group("nccl") and model.cuda().
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from xlstm_cuda.models import xLSTMLMModel, xLSTMLMModelConfig

RANKS = 2


def build() -> xLSTMLMModel:
    torch.manual_seed(0)
    return xLSTMLMModel(xLSTMLMModelConfig.from_ratio("1:1", 2, embedding_dim=32, vocab_size=19))


def train(model: Any, ids: torch.Tensor) -> list[float]:
    """Losses of ten steps, averaged over the processes."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean = loss.detach() / RANKS
        dist.all_reduce(mean)
        losses.append(mean.item())
    return losses


def main(rank: int, port: int) -> None:
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # whatever the machine calls itself
    dist.init_process_group("gloo", store=dist.TCPStore("127.0.0.1", port), rank=rank, world_size=RANKS)
    ids = torch.randint(19, (4, 25), generator=torch.Generator().manual_seed(rank))  # every process has data of its own
    replicated = train(DistributedDataParallel(build()), ids)
    model = build()
    for block in model.xlstm_block_stack.blocks:
        fully_shard(block)
    sharded = train(fully_shard(model), ids)
    if rank == 0:
        print("DDP  ", *(f"{loss:.3f}" for loss in replicated))
        print("FSDP2", *(f"{loss:.3f}" for loss in sharded))
    torch.testing.assert_close(torch.tensor(sharded), torch.tensor(replicated), rtol=1e-4, atol=0)
    dist.barrier()  # nobody leaves while another one still waits for its answer
    dist.destroy_process_group()


if __name__ == "__main__":
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torch.multiprocessing.spawn(main, (store.port,), nprocs=RANKS)
