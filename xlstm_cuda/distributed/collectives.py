"""What goes from rank to rank, with gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class _Gather(torch.autograd.Function):
    """x -> (R, *x.shape), of all ranks. The gradient of x is the sum of those that all ranks have for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup | None) -> Tensor:
        ctx.group = group
        found = x.new_empty(dist.get_world_size(group), *x.shape)
        dist.all_gather(list(found.unbind()), x.contiguous(), group)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        own, grad = grad.new_empty(grad.shape[1:]), grad.contiguous()
        dist.reduce_scatter(own, list(grad.unbind()), group=ctx.group)
        return own, None


class _Joined(torch.autograd.Function):
    """x as it is. What was gathered has part in its backward pass, with zeros: no rank waits for another in vain."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gathered: Tensor) -> Tensor:
        ctx.save_for_backward(gathered)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        (gathered,) = ctx.saved_tensors
        return grad, torch.zeros_like(gathered)


def joined(x: Tensor, gathered: Tensor) -> Tensor:
    """x, through which every rank comes to the backward pass of `gather`."""
    result: Tensor = _Joined.apply(x, gathered)
    return result


def gather(parts: list[Tensor], group: ProcessGroup | None) -> list[Tensor]:
    """Tensors of one dtype, in one message -> each of all ranks, (R, *shape)."""
    flat = torch.cat([part.flatten() for part in parts])
    found: Tensor = _Gather.apply(flat, group)
    pieces = found.split([part.numel() for part in parts], 1)
    return [piece.view(len(found), *part.shape) for piece, part in zip(pieces, parts, strict=True)]


def check_group(op: str, group: ProcessGroup | None) -> None:
    """Raises RuntimeError where there is no process group."""
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(f"{op}: needs torch.distributed.init_process_group, which torchrun makes possible")
    if dist.get_rank(group) < 0:
        raise RuntimeError(f"{op}: this process is not in the group that was given")
