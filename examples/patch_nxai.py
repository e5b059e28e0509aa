"""A language model of the public `xlstm` package, built as ever, then put on the kernels of xlstm_cuda by one line.

    pip install xlstm
    python examples/patch_nxai.py

Outputs and parameters stay. New are speed, a prompt read at once with its state for `step`, text of any length, and
pickle and torch.compile with sLSTM blocks.
"""

import pickle
import time

import torch
import xlstm

import xlstm_cuda

torch.manual_seed(0)
config = xlstm.xLSTMLMModelConfig(
    mlstm_block=xlstm.mLSTMBlockConfig(mlstm=xlstm.mLSTMLayerConfig(num_heads=4)),
    slstm_block=xlstm.sLSTMBlockConfig(slstm=xlstm.sLSTMLayerConfig(backend="vanilla", num_heads=4)),
    context_length=256,
    num_blocks=4,
    embedding_dim=128,
    slstm_at=[1],
    vocab_size=256,
)
model = xlstm.xLSTMLMModel(config)
model.reset_parameters()
ids = torch.randint(256, (2, 256))


def seconds() -> float:
    start = time.perf_counter()
    model(ids).logsumexp(-1).mean().backward()
    return time.perf_counter() - start


expected, before = model(ids), min(seconds() for _ in range(3))
print("patched:", xlstm_cuda.patch(model))
torch.testing.assert_close(model(ids), expected, rtol=1e-4, atol=1e-5)
after = min(seconds() for _ in range(3))
print(f"forward and backward: {before * 1e3:.0f} ms before, {after * 1e3:.0f} ms now")

with torch.no_grad():
    logits, state = model(ids[:, :255], return_last_state=True)
    logits, state = model.step(ids[:, 255:], state)
    torch.testing.assert_close(logits, expected[:, 255:], rtol=1e-4, atol=1e-5)
    print("logits of 1000 tokens, with a context_length of 256:", tuple(model(torch.randint(256, (2, 1000))).shape))
    copied = pickle.loads(pickle.dumps(model))
    print("a pickled copy gives the same:", torch.equal(copied(ids), model(ids)))

xlstm_cuda.unpatch(model)
print("unpatched, as at first:", torch.equal(model(ids), expected))
