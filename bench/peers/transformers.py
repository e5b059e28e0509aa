"""xLSTM of Hugging Face transformers: as it comes, and on this library's functions (interop.transformers)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from xlstm_cuda.interop import transformers as integration

from .. import models
from ..calls import Builder, Call, peer
from ..ops import Outputs, Tensors


def _model(t: Tensors) -> Any:
    from transformers import xLSTMConfig, xLSTMForCausalLM

    sizes = models.large_sizes(models.large_shape(t))
    config = xLSTMConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["embedding_dim"],
        num_blocks=sizes["num_blocks"],
        num_heads=sizes["num_heads"],
        autocast_kernel_dtype=str(t["lm_head.weight"].dtype).removeprefix("torch."),
        eos_token_id=None,
        pad_token_id=0,
    )
    names = {name: name if name == "lm_head.weight" else f"backbone.{name}" for name in t}
    names["embedding.weight"] = "backbone.embeddings.weight"
    names |= {name: theirs.replace("backbone.backbone.", "backbone.") for name, theirs in names.items()}
    return models.with_parameters(xLSTMForCausalLM(config), {names[name]: x for name, x in t.items()})


def _call(prepare: models.Prepare, patched: bool, t: Tensors) -> Call:
    model = _model(t)
    if patched:
        integration.patch(model)
    return Call(prepare(model, t), models.leaves_of(model))


def prefill(model: Any, t: Tensors) -> Callable[[], Outputs]:
    return lambda: (model(t["ids"], use_cache=True, logits_to_keep=1).logits[:, -1:],)


def generate(model: Any, t: Tensors) -> Callable[[], Outputs]:
    prompt, options = t["ids"].shape[1], {"max_new_tokens": int(t["new"]), "do_sample": False, "use_cache": True}
    return lambda: (model.generate(t["ids"], **options)[:, prompt:],)


def _builders(patched: bool) -> dict[str, Builder]:
    functions = {"large_prefill": prefill, "large_generate": generate}
    return {op: partial(_call, prepare, patched) for op, prepare in functions.items()}


IMPLEMENTATIONS = (
    peer("transformers", _builders(patched=False), "transformers"),
    peer("transformers-patched", _builders(patched=True), "transformers"),
)
