"""vLLM's own engine with the plug-in, on a CPU: greedy tokens are those of the model alone. No CI has vLLM.

vLLM's wheel is built for GPUs: what its CPU worker takes from a CPU build is defined here where it is missing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytest.importorskip("transformers")

PROGRAM = """
import sys
import torch
import vllm.platforms
from vllm.platforms.cpu import CpuPlatform
vllm.platforms._current_platform = CpuPlatform()
library = torch.library.Library("_C", "FRAGMENT")
for schema, run in (
    ("init_cpu_memory_env(int[] nodes) -> ()", lambda nodes: None),
    ("greedy_argmax(Tensor logits) -> Tensor", lambda logits: logits.argmax(-1)),
    ("compute_slot_mapping_kernel_impl(Tensor a, Tensor b, Tensor c, Tensor(a!) d, int e) -> ()", lambda *x: None),
):
    name = schema.partition("(")[0]
    if not hasattr(torch.ops._C, name):
        library.define(schema)
        library.impl(name, run, "CompositeExplicitAutograd")
import transformers
import vllm
from xlstm_cuda.interop import vllm as plug_in
from xlstm_cuda.interop.checkpoints import load_large

folder, dtype = sys.argv[1:]
sizes = dict(hidden_size=64, num_hidden_layers=2, num_heads=2, vocab_size=97)
config = transformers.xLSTMConfig(**sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)
torch.manual_seed(0)
model = transformers.xLSTMForCausalLM(config)
with torch.no_grad():
    for parameter in model.parameters():
        parameter += 0.15 * torch.randn(parameter.shape)
model.save_pretrained(folder)
plug_in.register()  # where the package is installed, vLLM does so
engine = vllm.LLM(
    folder, skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=3,
    max_num_batched_tokens=16, mamba_ssm_cache_dtype=dtype,
)
prompts = [torch.randint(3, 97, (length,)).tolist() for length in (40, 5, 23, 1, 17)]
sampling = vllm.SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, detokenize=False)
found = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], sampling)
ours = load_large(folder, dtype="float32")
for prompt, output in zip(prompts, found):
    expected = ours.generate(torch.tensor([prompt]), 12, temperature=0)[0, len(prompt):].tolist()
    assert list(output.outputs[0].token_ids) == expected
print("the same tokens")
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_greedy_tokens(tmp_path: Path, dtype: str) -> None:
    """Prompts in chunks beside requests that decode, more requests than slots."""
    pytest.importorskip("vllm")
    settings = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    environment = {**os.environ, **settings, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), dtype]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, cwd=tmp_path)
    assert done.returncode == 0 and "the same tokens" in done.stdout, done.stderr[-3000:]
