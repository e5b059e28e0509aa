"""Train a byte-level xLSTM language model on real text, beside a torch.nn.LSTM of the same size.

    python examples/train_lm.py                          # Python's standard library, two minutes on two idle cores
    python examples/train_lm.py --data book.txt notes/   # your own files and folders
    python examples/train_lm.py --resume                 # go on after Ctrl-C, with bit-identical results

The last tenth of the bytes is held out. The xLSTM is trained first, then the LSTM (one layer) on the same batches in
the same order, each with a learning rate of its own (--lr, --lstm-lr). Then come the held-out bits per
byte of both, `loss.png`, a generated sample, and the speed of the library's functions against their PyTorch versions.
Everything lands in --out.

Ctrl-C and SIGTERM save a checkpoint between two steps and exit with status 130 or 143; a run that is killed loses at
most --save-every steps. Errors exit with status 2. A resumed run repeats an uninterrupted one bit by bit, on the same
machine with the same number of threads.
"""

from __future__ import annotations

import argparse
import codecs
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lm import checkpoint, options
from lm.baseline import matching_lstm, parameter_count
from lm.checkpoint import CheckpointError
from lm.data import Corpus, DataError, held_out_batches, load_corpus
from lm.interrupts import Interrupted, Interrupts, catch_signals
from lm.plot import plot_losses
from lm.speed import print_speed
from lm.training import Run, Settings, TrainingError, evaluate, fit, pack, unpack
from torch import Tensor

import xlstm_cuda
from xlstm_cuda.models import xLSTMLMModel, xLSTMLMModelConfig
from xlstm_cuda.nn import FeedForwardConfig, mLSTMBlockConfig, mLSTMLayerConfig, sLSTMBlockConfig, sLSTMLayerConfig

BYTES = 256  # the vocabulary
MODELS = ("xlstm", "lstm")  # each has a folder in --out


def xlstm_config(args: argparse.Namespace) -> xLSTMLMModelConfig:
    """The block stack of the xLSTM paper: mLSTM blocks, and sLSTM blocks at the positions --slstm-at."""
    return xLSTMLMModelConfig(
        mlstm_block=mLSTMBlockConfig(
            mlstm=mLSTMLayerConfig(conv1d_kernel_size=4, qkv_proj_blocksize=4, num_heads=args.heads)
        ),
        slstm_block=sLSTMBlockConfig(
            slstm=sLSTMLayerConfig(conv1d_kernel_size=4, num_heads=args.heads, bias_init="powerlaw_blockdependent"),
            feedforward=FeedForwardConfig(proj_factor=1.3, act_fn="gelu"),
        ),
        vocab_size=BYTES,
        embedding_dim=args.dim,
        num_blocks=args.blocks,
        slstm_at=args.slstm_at,
        context_length=args.seq_len,
        dropout=args.dropout,
    )


def train(run: Run, until: int, deadline: float, corpus: Corpus, args: argparse.Namespace, stop: Interrupts) -> None:
    """Train up to step `until`, or up to the deadline, from the checkpoint if --resume is given and there is one."""
    folder = args.out / run.name
    identity = {"name": run.name, "model": run.description, "settings": asdict(run.settings)}
    if args.resume and checkpoint.exists(folder):
        tensors, meta = checkpoint.load(folder)
        require_same(identity, meta, f"cannot resume {folder}: ")
        unpack(run, tensors, meta)

    def save() -> None:
        progress = {"step": run.step, "bytes_seen": run.step * run.bytes_per_step, "seconds": run.seconds}
        checkpoint.save(folder, pack(run), {**identity, **progress, "finished": run.step == args.steps})

    def should_stop() -> bool:
        return bool(stop.pending) or time.monotonic() >= deadline

    with stop.held():
        fit(run, corpus, until, save, args.save_every, should_stop)
    if stop.pending:
        message = f"saved {run.name} at step {run.step} of {args.steps} in {folder}; --resume continues"
        raise Interrupted(stop.pending, message)


def require_same(ours: dict[str, Any], theirs: dict[str, Any], prefix: str) -> None:
    """Refuse to resume a run that was started with other settings."""
    for key, value in ours.items():
        found = theirs.get(key)
        if isinstance(value, dict) and isinstance(found, dict):
            require_same(value, found, f"{prefix}{key}.")
        elif found != value:
            raise CheckpointError(f"{prefix}{key} is {found!r} there and {value!r} now")


def report(runs: dict[str, Run], corpus: Corpus, args: argparse.Namespace) -> None:
    """Held-out bits per byte of each model, and the loss curves."""
    held_out = {}
    print(f"\n{'':14}{'parameters':>12}{'steps':>8}{'train s':>10}{'bytes/s':>10}{'held-out bits/byte':>21}")
    for name, run in runs.items():
        held_out[name] = evaluate(run, held_out_batches(corpus, args.eval_windows, args.batch_size, args.seq_len))
        speed = run.step * run.bytes_per_step / run.seconds
        row = f"{name:14}{parameter_count(run.model):12,}{run.step:8}{run.seconds:10.1f}{speed:10,.0f}"
        print(f"{row}{held_out[name]:21.3f}")
    losses = {name: run.losses for name, run in runs.items()}
    plot_losses(args.out / "loss.png", losses, held_out, args.batch_size * args.seq_len)
    print(f"\nloss curves: {args.out / 'loss.png'}")


def stream_sample(model: xLSTMLMModel, args: argparse.Namespace) -> None:
    """Print a continuation of the prompt byte by byte, as it is generated."""
    prompt = args.prompt or ("The " if args.data else "def ")
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def show(token: Tensor) -> None:
        print(printable(decoder.decode(bytes([int(token)]))), end="", flush=True)

    print("\nsample:\n" + printable(prompt), end="", flush=True)
    ids = torch.tensor([list(prompt.encode())], device=args.device)
    model.eval().generate(ids, args.sample_bytes, temperature=0.7, top_k=40, seed=args.seed, callback=show)
    print(printable(decoder.decode(b"", final=True)))


def printable(text: str) -> str:
    """The text without control characters and without what the terminal's encoding lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    shown = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
    return shown.encode(encoding, "replace").decode(encoding)


def unfinished(out: Path) -> bool:
    """Whether the folder holds a run that was stopped; a damaged checkpoint counts as one."""
    if not any(checkpoint.exists(out / name) for name in MODELS):
        return False
    try:
        return not all(checkpoint.load_meta(out / name).get("finished") is True for name in MODELS)
    except CheckpointError:
        return True


def demo(args: argparse.Namespace, config: xLSTMLMModelConfig, stop: Interrupts) -> None:
    if args.resume and not checkpoint.exists(args.out / "xlstm"):
        raise CheckpointError(f"there is no checkpoint to resume in {args.out / 'xlstm'}")
    if not args.resume and not args.overwrite and unfinished(args.out):
        raise CheckpointError(f"{args.out} holds an unfinished run: --resume continues it, --overwrite starts again")
    corpus = load_corpus(args.data, args.seq_len, args.max_bytes)
    checkpoint.make_folder(args.out)
    if not args.resume:
        for name in MODELS:
            checkpoint.remove(args.out / name)
    cut = f", cut at --max-bytes {args.max_bytes:,}" if corpus.capped else ""
    print(f"{len(corpus.train):,} bytes to train on, {len(corpus.held_out):,} held out ({corpus.files} files{cut})")

    settings = Settings(args.steps, args.batch_size, args.seq_len, args.lr, args.seed, args.bf16, corpus.sha256)
    device = torch.device(args.device)
    deadline = time.monotonic() + 60 * args.minutes if args.minutes else float("inf")

    torch.manual_seed(args.seed)
    xlstm_model = xLSTMLMModel(config)
    xlstm = Run("xlstm", xlstm_model, config.to_dict(), settings, device)
    train(xlstm, args.steps, deadline, corpus, args, stop)

    torch.manual_seed(args.seed)
    size = parameter_count(xlstm_model)
    lstm = Run("lstm", matching_lstm(BYTES, size), {"parameters": size}, replace(settings, lr=args.lstm_lr), device)
    train(lstm, xlstm.step, float("inf"), corpus, args, stop)

    report({"xLSTM": xlstm, "torch.nn.LSTM": lstm}, corpus, args)
    stream_sample(xlstm_model, args)
    if args.speed and args.backend != "reference":
        print_speed(args.device)
    if xlstm.step < args.steps:
        print(f"\nstopped after {args.minutes:g} minutes at step {xlstm.step} of {args.steps}; --resume continues")


def main(argv: list[str] | None = None) -> int:
    parser = options.parser(__doc__ or "")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device")
    try:
        config = xlstm_config(args)
    except ValueError as error:
        parser.error(str(error))
    try:
        with catch_signals() as interrupts, xlstm_cuda.backend(args.backend):
            demo(args, config, interrupts)
    except (DataError, CheckpointError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as interrupted:
        print(
            f"\ninterrupted: {str(interrupted) or 'the last checkpoint is complete; --resume goes on'}", file=sys.stderr
        )
        return interrupted.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
