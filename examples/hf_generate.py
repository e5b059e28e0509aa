"""Hugging Face's xLSTMForCausalLM on the functions of this library: the same tokens, and padding that does no harm.

Needs transformers 4.57 or later. The model is small and random; a folder that save_pretrained wrote does as well:
python examples/hf_generate.py FOLDER
"""

from __future__ import annotations

import sys
import time

import torch
from torch import nn
from transformers import xLSTMConfig, xLSTMForCausalLM

from xlstm_cuda.interop.transformers import patch

PAD = 1


def build() -> xLSTMForCausalLM:
    if len(sys.argv) > 1:
        return xLSTMForCausalLM.from_pretrained(sys.argv[1]).eval()
    torch.manual_seed(0)
    sizes = {"vocab_size": 1000, "hidden_size": 256, "num_hidden_layers": 4, "num_heads": 4}
    config = xLSTMConfig(**sizes, autocast_kernel_dtype="float32")
    model = xLSTMForCausalLM(config).eval()
    for name, parameter in model.named_parameters():  # input gates start nearly closed: make the memory matter
        if "igate" in name:
            nn.init.normal_(parameter)
        elif parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.1)
    return model


def generate(model: xLSTMForCausalLM, ids: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
    """The new tokens (B, 30)."""
    settings = {"max_new_tokens": 30, "min_new_tokens": 30, "do_sample": False, "pad_token_id": PAD}
    return model.generate(ids, **settings, **options)[:, ids.shape[1] :]


model = build()
prompts = [torch.randint(3, model.config.vocab_size, (1, length)) for length in (40, 7, 23)]
longest = max(prompt.shape[1] for prompt in prompts)
batch = torch.cat([nn.functional.pad(prompt, (longest - prompt.shape[1], 0), value=PAD) for prompt in prompts])
mask = (torch.arange(longest) >= longest - torch.tensor([[prompt.shape[1]] for prompt in prompts])).long()

for name in ("transformers", "xlstm_cuda"):
    if name == "xlstm_cuda":
        patch(model)
    start = time.perf_counter()
    alone = torch.cat([generate(model, prompt) for prompt in prompts])
    seconds = time.perf_counter() - start
    together = generate(model, batch, attention_mask=mask)
    same = int((alone == together).all(dim=1).sum())
    print(f"{name:<12} {seconds:5.2f} s one by one; in a padded batch {same} of {len(prompts)} rows are the same")
    if name == "transformers":
        expected = alone
assert torch.equal(alone, expected), "the kernels changed the tokens"
assert torch.equal(together, expected), "padding changed the tokens"
