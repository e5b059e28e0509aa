"""Cases: an op, a shape, a dtype, a mode. Parsed from the command line, or listed in a suite."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .ops import OPS, Op, Shape

DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}


class UsageError(ValueError):
    """A mistake in the request, for the user to read without a traceback."""


@dataclass(frozen=True)
class Case:
    op: str
    shape: Shape
    mode: str
    dtype: str = "float32"
    device: str = "cpu"
    impls: tuple[str, ...] | None = None  # None: all that can run it

    @property
    def label(self) -> str:
        return label(self.op, self.shape, self.dtype, self.mode, self.device)


def label(op: str, shape: Shape, dtype: str, mode: str, device: str) -> str:
    """A case in words."""
    return f"{op} {format_shape(shape)} {dtype} {mode}{'' if device == 'cpu' else f' {device}'}"


def known(kind: str, name: str, choices: dict[str, Op] | dict[str, torch.dtype] | tuple[str, ...]) -> None:
    if name not in choices:
        raise UsageError(f"unknown {kind} {name!r}: expected one of {', '.join(choices)}")


def make_case(op: str, shape: str, mode: str | None, dtype: str, device: str, impls: tuple[str, ...] | None) -> Case:
    """A case from command-line words; mode None: the op's most complete one. Raises UsageError."""
    known("op", op, OPS)
    known("dtype", dtype, DTYPES)
    modes = OPS[op].modes
    if mode is not None and mode not in modes:
        raise UsageError(f"{op}: mode must be one of {', '.join(modes)}, got {mode!r}")
    return Case(op, parse_shape(op, shape), mode or modes[-1], dtype, device, impls)


def parse_shape(op: str, text: str) -> Shape:
    """ "B=1,H=4,S=64,Dqk=32,Dv=32" to a dict in the op's order of keys; each of them once. Raises UsageError."""
    keys = OPS[op].keys
    expected = f"expected {','.join(f'{key}=..' for key in keys)}"
    shape: Shape = {}
    for part in text.split(","):
        key, _, value = part.strip().partition("=")
        if key not in keys:
            raise UsageError(f"{op}: unknown shape key {key!r}: {expected}")
        if key in shape:
            raise UsageError(f"{op}: shape key {key} given twice")
        least = 0 if key in OPS[op].may_be_zero else 1
        if not value.isascii() or not value.isdigit() or int(value) < least:
            kind = "an integer >= 0" if least == 0 else "a positive integer"
            raise UsageError(f"{op}: shape key {key} must be {kind}, got {value!r}")
        shape[key] = int(value)
    missing = [key for key in keys if key not in shape]
    if missing:
        raise UsageError(f"{op}: shape lacks {', '.join(missing)}: {expected}")
    return {key: shape[key] for key in keys}


def format_shape(shape: Shape) -> str:
    return ",".join(f"{key}={value}" for key, value in shape.items())


def _listed(op: str, shape: str, mode: str, *impls: str) -> Case:
    return Case(op, parse_shape(op, shape), mode, impls=impls or None)


def _on_cuda(
    op: str, shape: str, *impls: str, float32: tuple[str, ...] = (), bfloat16: tuple[str, ...] = ()
) -> list[Case]:
    """A step in both dtypes, each with implementations of its own besides those of both."""
    parsed = parse_shape(op, shape)
    return [
        Case(op, parsed, "step", dtype, "cuda", (*impls, *more))
        for dtype, more in (("float32", float32), ("bfloat16", bfloat16))
    ]


def _of_models() -> list[Case]:
    """Training and forward of language models, [1:0], [7:1], [1:1] and [0:1]; xLSTMLarge's prefill and decoding."""
    lm = [
        _listed("lm", shape, mode, "cpu", "xlstm", "transformer", *compiled)
        for shape, *compiled in (
            ("B=8,S=256,D=256,M=6,N=0", "reference-compiled"),
            *(("B=8,S=256,D=256,M=7,N=1",), ("B=8,S=256,D=256,M=3,N=3",), ("B=8,S=256,D=256,M=0,N=6",)),
            ("B=2,S=512,D=1024,M=6,N=0",),
        )
        for mode in ("fwdbwd", "fwd")
    ]
    sizes, hf = "D=512,L=6", ("transformers", "transformers-patched")
    return [
        *lm,
        *(_listed("large_prefill", f"B={B},S=512,{sizes}", "fwd", *_LARGE, *hf) for B in (1, 8)),
        *(_listed("large_step", f"B={B},{sizes}", "step", *_LARGE) for B in (1, 8, 64)),
        _listed("large_generate", f"B=1,S=16,T=64,{sizes}", "fwd", "cpu", "xlstm-large", *hf),
    ]


def _of_glue() -> list[Case]:
    """What lies between the cells, in widths of the models above; the compiled reference where it has most to fuse."""
    shapes = {
        "causal_conv1d": "B=8,S=256,F=512,K=4",
        "headwise_linear": "B=8,S=256,N=128,I=4",
        "multihead_norm_gate": "B=8,S=256,H=4,D=128",
        "gated_activation": "B=8,S=256,F=704",
        "soft_cap": "B=8,S=256,F=512",
    }
    peers = {"soft_cap": ("xlstm-large",), "gated_activation": ()}
    return [
        Case(op, parse_shape(op, shape), mode, dtype, impls=("cpu", "reference", *peers.get(op, ("xlstm",)), *compiled))
        for op, shape in shapes.items()
        for dtype, mode, *compiled in (
            *(("float32", "fwdbwd", "reference-compiled"), ("float32", "fwd")),
            *(("bfloat16", "fwdbwd"), ("bfloat16", "fwd")),
        )
    ]


def _of_models_on_cuda() -> list[Case]:
    """Training, prefill and decoding in bfloat16, beside models on others' kernels."""
    large, lm = "D=2048,L=12", ("cuda", "xlstm", "xlstm-cuda", "transformer")
    large_peers = ("cuda", "xlstm-large-triton", "transformer")

    def case(op: str, shape: str, mode: str, *impls: str) -> Case:
        return Case(op, parse_shape(op, shape), mode, "bfloat16", "cuda", impls)

    return [
        *(case("lm", f"B=16,S=1024,D=512,{blocks}", "fwdbwd", *lm) for blocks in ("M=12,N=0", "M=7,N=1")),
        case("large_prefill", f"B=4,S=4096,{large}", "fwd", *large_peers, "transformers", "transformers-patched"),
        *(case("large_step", f"B={B},{large}", "step", *large_peers) for B in (1, 64)),
    ]


# the token-by-token reference is left out where it would keep gigabytes or take seconds, the compiled one where
# compiling takes longer than all the rest
_SLSTM, _LSTM = ("cpu", "reference", "xlstm"), ("cpu", "nn.LSTM", "torch.nn.LSTM")
_MLSTM, _MLSTM_STEP = ("cpu", "reference-chunkwise", "mlstm_kernels"), ("cpu", "inplace", "reference", "mlstm_kernels")
_LARGE = ("cpu", "xlstm-large", "transformer")
_INPLACE, _INPLACE_16 = ("cuda", "cuda-inplace"), ("cuda-inplace-bf16",)
_GRAPH_16 = (*_INPLACE_16, "cuda-graph-bf16")
_LSTM_CELL = ("torch.nn.LSTMCell",)  # in bfloat16 it keeps its state in 16 bits, which costs it the check

TOKENS = 65536  # B S of every case of paper-tfla, as in arXiv 2503.14376
_TFLA_LENGTHS = (512, 2048, 8192, 32768, 65536)
_TFLA_HEADS = ((64, 64, 64), (32, 128, 128), (16, 128, 256), (8, 256, 512), (8, 512, 512))  # H, Dqk, Dv; H Dv = 4096
_MLSTM_OURS, _MLSTM_XL = ("cuda", "cuda-best-chunk", "cuda-norm-grad-off"), "mlstm_kernels-xl_chunk"
_MLSTM_PEERS = (_MLSTM_XL, "mlstm_kernels-limit_chunk", "fla-simple_gla", "sdpa")


def _on_cuda_mlstm(heads: tuple[int, int, int], S: int, mode: str, *peers: str) -> Case:
    H, Dqk, Dv = heads
    shape = {"B": TOKENS // S, "H": H, "S": S, "Dqk": Dqk, "Dv": Dv}
    return Case("mlstm", shape, mode, "bfloat16", "cuda", (*_MLSTM_OURS, *peers))


# Head dimensions and heads of arXiv 2412.07752: 768 hidden units, 16 rows of 1024 tokens.
_FLASHRNN_HEADS = ((16, 48), (32, 24), (64, 12), (128, 6), (256, 3), (768, 1))
_FLASHRNN = ("flashrnn", "flashrnn-alternating", "flashrnn-triton")


def _on_cuda_cell(op: str, D: int, mode: str, *peers: str, dtype: str = "bfloat16") -> Case:
    shape = {"B": 16, "S": 1024, "H": dict(_FLASHRNN_HEADS)[D], "D": D}
    return Case(op, shape, mode, dtype, "cuda", ("cuda", *peers))


_NARROW, _, _MIDDLE, _WIDE, _ = _TFLA_HEADS

SUITES: dict[str, list[Case]] = {
    "smoke": [
        _listed("mlstm", "B=1,H=2,S=64,Dqk=16,Dv=16", "fwdbwd", *_MLSTM, "reference"),
        _listed("mlstm_step", "B=1,H=2,Dqk=16,Dv=16", "step", *_MLSTM_STEP),
        _listed("slstm", "B=2,S=16,H=2,D=16", "fwdbwd", *_SLSTM),
        _listed("slstm_step", "B=2,H=2,D=16", "step", "cpu", "reference"),
        _listed("lstm", "B=2,S=16,H=1,D=16", "fwdbwd", *_LSTM, "reference"),
        _listed("lstm_step", "B=2,H=1,D=16", "step", "cpu", "reference", "torch.nn.LSTMCell"),
    ],
    "cpu": [
        _listed("slstm", "B=16,S=256,H=4,D=64", "fwd", *_SLSTM),
        _listed("slstm", "B=16,S=256,H=4,D=64", "fwdbwd", *_SLSTM),
        _listed("slstm", "B=1,S=256,H=4,D=64", "fwd", *_SLSTM),
        _listed("slstm", "B=1,S=256,H=4,D=64", "fwdbwd", *_SLSTM),
        _listed("slstm", "B=8,S=200,H=3,D=64", "fwd", *_SLSTM),
        _listed("slstm", "B=8,S=200,H=3,D=64", "fwdbwd", *_SLSTM),
        _listed("lstm", "B=1,S=512,H=1,D=256", "fwd", *_LSTM),
        _listed("lstm", "B=1,S=512,H=1,D=256", "fwdbwd", *_LSTM),
        _listed("lstm", "B=16,S=512,H=1,D=256", "fwd", *_LSTM),
        _listed("lstm", "B=16,S=512,H=1,D=256", "fwdbwd", *_LSTM),
        _listed("mlstm", "B=1,H=8,S=1024,Dqk=128,Dv=256", "fwdbwd", *_MLSTM),
        _listed("mlstm", "B=1,H=4,S=1024,Dqk=64,Dv=64", "fwdbwd", *_MLSTM, "reference-compiled"),
        _listed("mlstm_step", "B=1,H=4,Dqk=64,Dv=64", "step"),
        _listed("mlstm_step", "B=1,H=8,Dqk=256,Dv=512", "step"),
        _listed("mlstm_step", "B=64,H=8,Dqk=256,Dv=512", "step"),  # a state larger than most caches
    ],
    "model": _of_models(),
    "glue": _of_glue(),
    "cuda-model": _of_models_on_cuda(),
    # Decoding. The state of mlstm_step has 4 MiB a row: that of 8 rows fits the L2 of a large GPU, that of 64 does not.
    "cuda": [
        *_on_cuda("mlstm_step", "B=1,H=8,Dqk=256,Dv=512", *_INPLACE, "cuda-graph", "reference", bfloat16=_GRAPH_16),
        *_on_cuda("mlstm_step", "B=8,H=8,Dqk=256,Dv=512", *_INPLACE, "reference", bfloat16=_INPLACE_16),
        *_on_cuda("mlstm_step", "B=64,H=8,Dqk=256,Dv=512", *_INPLACE, "reference", bfloat16=_INPLACE_16),
        *_on_cuda("mlstm_step", "B=256,H=8,Dqk=256,Dv=512", *_INPLACE, bfloat16=_INPLACE_16),
        *_on_cuda("slstm_step", "B=1,H=4,D=256", "cuda", "cuda-graph", "reference"),
        *_on_cuda("slstm_step", "B=64,H=4,D=256", "cuda", "cuda-graph", "reference"),
        *_on_cuda("lstm_step", "B=1,H=1,D=512", "cuda", "cuda-graph", "reference", float32=_LSTM_CELL),
        *_on_cuda("lstm_step", "B=64,H=1,D=512", "cuda", "cuda-graph", "reference", float32=_LSTM_CELL),
    ],
    # For make gpu-check, which has little time: Triton compiles for every head dimension, so its kernels are in the
    # cases of the goals only.
    "cuda-mlstm": [
        _on_cuda_mlstm(_MIDDLE, 8192, "fwd", _MLSTM_XL, "sdpa"),
        _on_cuda_mlstm(_MIDDLE, 8192, "fwdbwd", _MLSTM_XL, "sdpa"),
        _on_cuda_mlstm(_WIDE, 8192, "fwdbwd", "sdpa"),
        _on_cuda_mlstm(_NARROW, 8192, "fwdbwd", "sdpa"),
    ],
    # The same for the recurrent cells; flashrnn compiles for every shape.
    "cuda-recurrent": [
        *(_on_cuda_cell("slstm", D, "fwd") for D in (64, 128, 256, 768)),
        *(_on_cuda_cell("slstm", D, "fwdbwd") for D in (64, 256)),
        *(_on_cuda_cell("lstm", 768, mode, "torch.nn.LSTM") for mode in ("fwd", "fwdbwd")),
    ],
    "paper-flashrnn": [
        *(_on_cuda_cell("slstm", D, mode, *_FLASHRNN) for D, _ in _FLASHRNN_HEADS for mode in ("fwd", "fwdbwd")),
        *(
            _on_cuda_cell("lstm", 768, mode, "torch.nn.LSTM", *_FLASHRNN, dtype=dtype)
            for dtype in ("bfloat16", "float16")
            for mode in ("fwd", "fwdbwd")
        ),
    ],
    "paper-tfla": [
        _on_cuda_mlstm(heads, S, mode, *_MLSTM_PEERS)
        for heads in _TFLA_HEADS
        for S in _TFLA_LENGTHS
        for mode in ("fwd", "fwdbwd")
    ],
}
