"""FlashRNNConfig: the fields of the package's config object that say something about a result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Names of the dimensions: B batch, T time, G gates, S states, H heads, D units, P units of the token before.
INPUT_SHAPES = ("BTGHD", "TBGHD")
OUTPUT_SHAPES = ("SBHTD", "STBHD", "SBTHD")
RECURRENT_SHAPES = ("GHDP", "HGDP", "HPGD", "HPDG")
BIAS_SHAPES = ("GHD", "HGD", "HDG")
BACKENDS = ("vanilla", "vanilla_fwbw", "cuda", "cuda_fused", "triton_fused")
DTYPES = ("bfloat16", "float16", "float32", "float64")
STATES = {"lstm": 2, "slstm": 4}  # h, c; h, c, n, m


@dataclass
class FlashRNNConfig:
    """What `flashrnn` computes, and how its tensors lie. The package's own config object does as well.

    backend: the device of the tensors decides what computes. "vanilla" keeps their dtypes; under any other name they
        are cast, as the package does: Wx to dtype_w, R to dtype_r, b to dtype_b, states and results to dtype_s.
    function: "lstm" or "slstm". The package's "gru" and "elman" have no kernels here.
    hidden_dim, num_heads, head_dim: may be left out, as the tensors have them.
    input_shape, output_shape, recurrent_shape, bias_shape: the order of the dimensions, by the package's letters:
        B batch, T time, G gates (i, f, z, o), S states (h, c; for an sLSTM also n, m), H heads, D units, P units of
        the token before.
    dtype: "bfloat16", "float16", "float32" or "float64"; dtype_w, dtype_r, dtype_b and dtype_s are the same unless
        given (dtype_s: as dtype_w).
    enable_automatic_mixed_precision: False: nothing is cast.
    initial_val: of all states where none are given, one value or one for each state.
    gradient_recurrent_cut, gradient_recurrent_clipval, forward_clipval: refused, unless they are as they are here.
    constants, batch_size, simple_agg, dtype_acc, dtype_g, dtype_a, trainable_r, trainable_b: accepted; they change no
        result here.

    Raises ValueError for a name that is none of these.
    """

    backend: str = "cuda_fused"
    function: str = "lstm"
    gradient_recurrent_cut: bool = False
    gradient_recurrent_clipval: float | None = None
    forward_clipval: float | None = None
    constants: dict[str, float] | None = None
    simple_agg: bool = True
    hidden_dim: int = -1
    num_heads: int = -1
    head_dim: int = -1
    batch_size: int = 8
    input_shape: str = "BTGHD"
    output_shape: str = "SBTHD"
    recurrent_shape: str = "GHDP"
    bias_shape: str = "GHD"
    dtype: str = "bfloat16"
    dtype_acc: str | None = "float32"
    dtype_b: str | None = None
    dtype_r: str | None = None
    dtype_w: str | None = None
    dtype_g: str | None = None
    dtype_s: str | None = None
    dtype_a: str | None = None
    enable_automatic_mixed_precision: bool = True
    trainable_r: Sequence[bool] | bool = True
    trainable_b: Sequence[bool] | bool = True
    initial_val: float | Sequence[float] = 0.0

    def __post_init__(self) -> None:
        self.dtype_w = self.dtype_w or self.dtype
        self.dtype_r = self.dtype_r or self.dtype
        self.dtype_b = self.dtype_b or self.dtype
        self.dtype_s = self.dtype_s or self.dtype_w
        check(self)


def check(config: FlashRNNConfig) -> None:
    """Of ours or of the package's config object: ValueError for what has no meaning, or no kernel, here."""
    if config.function not in STATES:
        hint = ", which has no kernels here" if config.function in ("gru", "elman") else ""
        raise ValueError(f"flashrnn: function must be 'lstm' or 'slstm', got {config.function!r}{hint}")
    choices = {"backend": BACKENDS, "input_shape": INPUT_SHAPES, "output_shape": OUTPUT_SHAPES}
    choices |= {"recurrent_shape": RECURRENT_SHAPES, "bias_shape": BIAS_SHAPES}
    choices |= {name: DTYPES for name in ("dtype", "dtype_w", "dtype_r", "dtype_b", "dtype_s")}
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            names = ", ".join(map(repr, allowed))
            raise ValueError(f"flashrnn: {name} must be one of {names}, got {getattr(config, name)!r}")
    for name in ("gradient_recurrent_cut", "gradient_recurrent_clipval", "forward_clipval"):
        value = getattr(config, name)
        if value is not None and value is not False:
            raise ValueError(f"flashrnn: {name} is not supported: gradients and outputs are exact here, got {value!r}")
