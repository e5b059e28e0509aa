"""A cross-section of every op against the reference, at the SIMD level that XLSTM_SIMD names. Run by test_simd.py."""

from __future__ import annotations

import torch

from tests.functional import test_conv, test_gated, test_headwise, test_norm
from tests.support.against_reference import check
from xlstm_cuda import _C, lstm, lstm_step, mlstm, mlstm_step, slstm, slstm_step
from xlstm_cuda._ops import ACTIVATIONS
from xlstm_cuda.testing import lstm_inputs, mlstm_inputs, slstm_inputs

torch.set_num_threads(1)
for dtype in (torch.float64, torch.float32):
    options = {"dtype": dtype, "state": True, "requires_grad": True}
    for S, Dqk, Dv in ((1, 3, 5), (40, 17, 33), (70, 32, 16)):
        # a low input gate keeps |r| away from zero, where float32 loses digits whatever the level
        check(mlstm, mlstm_inputs(2, 2, S, Dqk, Dv, input_bias=-3.0, **options), "cpu")
        check(mlstm, mlstm_inputs(1, 1, S, Dqk, Dv, **options), "cpu", input_gate="sigmoid", normalize=False)
    for B, S, H, D in ((1, 5, 1, 3), (5, 30, 2, 17), (3, 9, 1, 32)):
        check(slstm, slstm_inputs(B, S, H, D, **options), "cpu")
        check(slstm, slstm_inputs(B, S, H, D, **options, forget_bias=-2.0), "cpu", forget_gate="exp")
        check(lstm, lstm_inputs(B, S, H, D, **options), "cpu")
    plain = {"dtype": dtype, "state": True}
    for S in (1, 2, 16):
        tokens = mlstm_inputs(2, 3, S, 19, 70, input_bias=-3.0, **plain)
        state = tokens.pop("initial_state")
        check(mlstm_step, {**tokens, "state": state}, "cpu")
    for step, inputs in ((slstm_step, slstm_inputs), (lstm_step, lstm_inputs)):
        token = inputs(3, 1, 2, 35, **plain)
        state = token.pop("initial_state")
        check(step, {**token, "x": token["x"][:, 0], "state": state}, "cpu")
    for B, S, F, K in ((2, 70, 21, 4), (1, 5, 300, 2), (3, 9, 7, 6)):
        reset = torch.rand(B, S) < 0.2
        test_conv.check(test_conv.draw(B, S, F, K, dtype), "cpu", activation="silu", reset=reset)
    for sizes in ((2, 70, 2, 21), (1, 5, 1, 300), (3, 2, 3, 1)):
        for norm in ("layer", "rms"):
            test_norm.check(test_norm.draw(*sizes, dtype), "cpu", norm=norm, weight_offset=1.0, eps=0.1)
    for D in (1, 2, 4, 8, 16, 5):
        for N in (1, 3, 33) if D > 1 else (3, 33):  # a gradient of one number may be a sum that cancels
            test_headwise.check(test_headwise.draw((2, 37), N, D, (D, 4), dtype), "cpu")
for dtype in (torch.bfloat16, torch.float16):  # as they lie in memory
    for B, S, F, K in ((2, 70, 21, 4), (1, 9, 7, 3)):
        test_conv.check(test_conv.draw(B, S, F, K, dtype), "cpu", activation="silu", reset=torch.rand(B, S) < 0.2)
    test_norm.check(test_norm.draw(2, 7, 2, 21, dtype), "cpu", norm="layer", weight_offset=1.0, eps=0.1)
    for D in (4, 8, 3):
        test_headwise.check(test_headwise.draw((2, 37), 9, D, (D, 4), dtype), "cpu")
for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
    for activation in (*ACTIVATIONS, "soft_cap"):
        test_gated.check((2, 3), 37, True, dtype, activation, "cpu")
print(_C.build_info()["simd"], "ok")
