"""What the plug-in for vLLM computes, without vLLM: tokens of many requests in one row, states in pages."""

from __future__ import annotations

import random
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from xlstm_cuda import MLSTMState, mlstm
from xlstm_cuda.interop import vllm
from xlstm_cuda.interop.checkpoints.layouts import LAYOUTS
from xlstm_cuda.interop.vllm.batch import Batch, mlstm_over_pages
from xlstm_cuda.interop.vllm.large import config_of, hidden_states, load_weights, state_shapes
from xlstm_cuda.models import weights, xLSTMLarge, xLSTMLargeConfig
from xlstm_cuda.testing import assert_close_relative

VOCAB, PAGES = 13, 7
FIELDS = {"model_type": "xlstm", "hidden_size": 32, "num_heads": 2, "num_hidden_layers": 2, "vocab_size": VOCAB}
bound = 1e-10  # in float64


@pytest.fixture(autouse=True)
def seed(fresh_seed: int) -> None:
    random.seed(fresh_seed)


def build() -> xLSTMLarge:
    model = xLSTMLarge(config_of(FIELDS)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return model.eval()


def pages_of(model: xLSTMLarge) -> list[MLSTMState]:
    """Full of what nobody wants, all parts of a request in one page."""
    found = []
    for _ in model.backbone.blocks:
        shapes = state_shapes(model.config)
        sizes = [torch.Size(shape).numel() for shape in shapes]
        table = torch.full((PAGES, sum(sizes)), torch.nan, dtype=torch.float64)
        parts = table.split(sizes, 1)
        found.append(MLSTMState(*(part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True))))
    return found


def batch_of(decodes: list[int], prompts: list[tuple[int, int, bool]]) -> Batch:
    """decodes: pages; prompts: page, tokens, and whether it begins here."""
    starts = torch.tensor([0, *(tokens for _, tokens, _ in prompts)]).cumsum(0, dtype=torch.int32)
    fresh = torch.tensor([fresh for *_, fresh in prompts], dtype=torch.bool)
    slots = torch.tensor([*decodes, *(page for page, *_ in prompts)], dtype=torch.int32)
    return Batch(len(decodes), int(starts[-1]), starts, fresh, slots)


@torch.no_grad()
def test_an_engine() -> None:
    """Requests come, are read in chunks beside others that decode, end, and leave their pages to others."""
    model = build()
    pages, texts = pages_of(model), [torch.randint(VOCAB, (random.randint(2, 12),)) for _ in range(12)]
    waiting, running = list(range(len(texts))), {}  # by request: page, tokens read, length of the prompt
    logits: dict[int, list[Tensor]] = {request: [] for request in waiting}
    while waiting or running:
        used = {page for page, *_ in running.values()}
        while waiting and len(used) < PAGES - 1 and random.random() < 0.7:
            page = random.choice([page for page in range(PAGES) if page not in used])
            request = waiting.pop(0)
            running[request] = (page, 0, random.randint(1, len(texts[request])))
            used.add(page)
        decoding = [r for r, (_, read, length) in running.items() if read >= length]
        prompts, counts = [r for r in running if r not in decoding], {}
        for request in prompts:
            _, read, length = running[request]
            counts[request] = random.randint(1, length - read)
        order = decoding + prompts
        if not order:
            continue
        ids = torch.cat([texts[r][running[r][1] : running[r][1] + counts.get(r, 1)] for r in order])
        ids = torch.cat([ids, torch.zeros(random.randint(0, 2), dtype=torch.int64)])  # padding
        batch = batch_of(
            [running[r][0] for r in decoding], [(running[r][0], counts[r], running[r][1] == 0) for r in prompts]
        )
        found = model.lm_head(hidden_states(model, ids, pages, batch)) / 1.0
        begin = 0
        for request in order:
            page, read, length = running[request]
            count = counts.get(request, 1)
            logits[request].append(found[begin : begin + count])
            begin += count
            running[request] = (page, read + count, length)
            if read + count == len(texts[request]):
                del running[request]
    cap = model.config.output_logit_soft_cap
    for request, text in enumerate(texts):
        capped = cap * torch.tanh(torch.cat(logits[request]) / cap) if cap else torch.cat(logits[request])
        assert_close_relative(capped, model(text[None])[0], bound)


@pytest.mark.parametrize("gate", ["sigmoid", "exp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pages_of_either_dtype(backend: str, device: str, gate: str, dtype: torch.dtype) -> None:
    """Prompts, then a token of each beside a new prompt; other pages stay. C in bfloat16 is rounded after each call."""
    H, T, D = 2, 9, 4
    q, k, v = (torch.randn(1, H, T, D, device=device) for _ in range(3))
    i, f = torch.randn(1, H, T, device=device), torch.randn(1, H, T, device=device) + 3
    C, n, m = torch.randn(PAGES, H, D, D), torch.randn(PAGES, H, D), torch.randn(PAGES, H)
    pages = MLSTMState(C.to(device, dtype), n.to(device), m.to(device))
    before = MLSTMState(*(s.clone() for s in pages))
    options: dict[str, Any] = {"input_gate": gate, "eps": 1e-6, "pages": pages}

    def part(a: int, b: int) -> list[Tensor]:
        return [x[:, :, a:b] for x in (q, k, v, i, f)]

    first, _ = mlstm_over_pages(*part(0, 6), batch=moved(batch_of([], [(5, 4, True), (2, 2, True)]), device), **options)
    second, _ = mlstm_over_pages(*part(6, 9), batch=moved(batch_of([2, 5], [(0, 1, False)]), device), **options)
    tokens = {5: [0, 1, 2, 3, 7], 2: [4, 5, 6], 0: [8]}
    h = torch.cat([first, second], 2)
    for page, places in tokens.items():
        state = None if page else MLSTMState(*(s[:1].float() for s in before))
        inputs = [x[:, :, places].float() for x in (q, k, v, i, f)]
        expected = mlstm(*inputs, initial_state=state, input_gate=gate, backend="reference")
        assert_close_relative(h[:, :, places], expected, 1e-4 if dtype == torch.float32 else 3e-2)
    for own, old in zip(pages, before, strict=True):
        assert torch.equal(own[[1, 3, 4, 6]], old[[1, 3, 4, 6]])


def moved(batch: Batch, device: str) -> Batch:
    return batch._replace(**{name: getattr(batch, name).to(device) for name in ("starts", "fresh", "slots")})


@torch.no_grad()
def test_without_pages() -> None:
    """As an engine asks for to see how much memory a step takes."""
    model, ids = build(), torch.randint(VOCAB, (5,))
    batch = Batch.alone(5, ids.device)
    hidden = hidden_states(model, ids, [None] * 2, batch)
    cap = model.config.output_logit_soft_cap
    logits = model.lm_head(hidden)
    assert_close_relative(cap * torch.tanh(logits / cap), model(ids[None])[0], bound)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_weights(fused: bool, tied: bool) -> None:
    """By transformers' names, fused or not, one after the other; a tied head is not among them."""
    source = build()
    if tied:
        source.lm_head.weight = source.embedding.weight
    single = weights.split_weights(source.state_dict(), source.config)
    stored = weights.fuse_weights(single) if fused else single
    named = {LAYOUTS["hf"].tensor_name(name): tensor for name, tensor in stored.items()}
    if tied:
        del named["lm_head.weight"]
    model = xLSTMLarge(source.config).double()
    assert load_weights(model, iter(named.items())) == {name for name, _ in model.named_parameters()}
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_wrong_weights() -> None:
    model = build()
    with pytest.raises(ValueError, match="^load_weights: backbone.norm is no tensor of an xLSTMForCausalLM"):
        load_weights(model, [("backbone.norm", torch.zeros(3))])
    message = r"^load_weights: lm_head.weight must have shape \(13, 32\), got \(3,\)"
    with pytest.raises(ValueError, match=message):
        load_weights(model, [("lm_head.weight", torch.zeros(3))])
    with pytest.raises(ValueError, match="model_type must be 'xlstm', got 'mamba'"):
        config_of({"model_type": "mamba"})


def test_config_is_transformers() -> None:
    config = config_of({**FIELDS, "qk_dim_factor": 1.0, "gate_soft_cap": 10.0})
    assert isinstance(config, xLSTMLargeConfig) and config.weight_mode == "fused" and config.mode == "inference"
    assert (config.embedding_dim, config.num_blocks, config.qk_dim_factor, config.gate_soft_cap) == (32, 2, 1.0, 10.0)
    assert state_shapes(config) == ((2, 16, 16), (2, 16), (2,))


def test_register(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name alone: the model's module, which needs vLLM, is not imported."""
    known: dict[str, str] = {}
    stand_in = SimpleNamespace(ModelRegistry=SimpleNamespace(register_model=known.__setitem__))
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    vllm.register()
    assert known == {"xLSTMForCausalLM": "xlstm_cuda.interop.vllm.model:XLSTMForCausalLM"}
    assert "xlstm_cuda.interop.vllm.model" not in sys.modules
