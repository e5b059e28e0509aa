"""One step of a serving engine: the tokens of many requests in one row, their states in pages. Without the engine."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ... import functional
from ..._states import MLSTMState


class Batch(NamedTuple):
    """Which tokens of a row (T, ...) belong to whom: first those that decode, one token each, then prompts or parts of
    them.

    decodes: number of the former, prompt_tokens: of all tokens of the latter.
    starts: int32 (P + 1,), where the tokens of each of the P prompts begin and the last ones end, from 0.
    fresh: bool (P,), of which nothing was read before: what is in its page is somebody else's.
    slots: int32 (decodes + P,), the page of each request; None where no states are kept.
    """

    decodes: int
    prompt_tokens: int
    starts: Tensor
    fresh: Tensor
    slots: Tensor | None

    @classmethod
    def alone(cls, tokens: int, device: torch.device) -> Batch:
        """One prompt of so many tokens, whose state nobody keeps."""
        starts = torch.tensor([0, tokens], dtype=torch.int32, device=device)
        return cls(0, tokens, starts, torch.ones(1, dtype=torch.bool, device=device), None)


def mlstm_over_pages(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    *,
    pages: MLSTMState | None,
    batch: Batch,
    input_gate: str,
    eps: float,
) -> tuple[Tensor, MLSTMState | None]:
    """h (1, H, T, Dv), and the pages, which were written.

    q, k (1, H, T, Dqk), v (1, H, T, Dv), i, f (1, H, T). What lies behind the batch's tokens is padding.
    pages: C (N, H, Dqk, Dv), n (N, H, Dqk), m (N, H), rows of any stride, in place.
    """
    inputs: tuple[Tensor, ...] = (q, k, v, i, f)
    options: dict[str, Any] = {"input_gate": input_gate, "eps": eps}
    step, scan = cast(Any, functional.mlstm_step), cast(Any, functional.mlstm)
    h = torch.zeros_like(v)
    if batch.decodes:
        assert pages is not None and batch.slots is not None
        tokens = (x[0, :, : batch.decodes].transpose(0, 1) for x in inputs)
        decoded, _ = step(*tokens, pages, inplace=True, slots=batch.slots[: batch.decodes], **options)
        h[0, :, : batch.decodes] = decoded.transpose(0, 1)
    if batch.prompt_tokens:
        part = slice(batch.decodes, batch.decodes + batch.prompt_tokens)
        options |= {"initial_state": _states_of(pages, batch), "cu_seqlens": batch.starts}
        h[:, :, part], after = scan(*(x[:, :, part] for x in inputs), return_state=True, **options)
        _keep(pages, batch, after)
    return h, pages


def _states_of(pages: MLSTMState | None, batch: Batch) -> MLSTMState | None:
    """Of the prompts (P, ...), before their tokens; empty where nothing was read."""
    if pages is None or batch.slots is None:
        return None
    index, kept = batch.slots[batch.decodes :].long(), ~batch.fresh
    # Not a product: a page that nobody has used may hold NaN.
    return MLSTMState(*(torch.where(kept.view(-1, *[1] * (s.ndim - 1)), s[index], 0) for s in pages))


def _keep(pages: MLSTMState | None, batch: Batch, states: MLSTMState) -> None:
    if pages is not None and batch.slots is not None:
        index = batch.slots[batch.decodes :].long()
        for page, state in zip(pages, states, strict=True):
            page[index] = state.to(page.dtype)
