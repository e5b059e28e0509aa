// recurrent_fwd, recurrent_bwd, recurrent_step on the CPU: LSTM and sLSTM, over whole sequences and one token at a
// time.
#include "ops/recurrent.h"

#include "cpu/kernels.h"
#include "ops/library.h"

namespace xlstm::ops {
namespace {

Rounding rounding_of(const Tensor& x) {
  if (x.scalar_type() == ScalarType::BFloat16) return Rounding::bfloat16;
  return x.scalar_type() == ScalarType::Half ? Rounding::float16 : Rounding::none;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> recurrent_fwd(
    const Tensor& x, const Tensor& R, OptionalTensor b, OptionalTensor h0, OptionalTensor c0, OptionalTensor n0,
    OptionalTensor m0, OptionalTensor lengths, OptionalTensor reset, int64_t cell_number, int64_t reversed_heads,
    bool /*allow_tf32*/, bool save) {
  NoGrad guard;
  const auto [cell, s, type, slstm] = RecurrentFwdCall(x, R, b, reset, cell_number, reversed_heads);
  const OptionalTensor b_c = as_contiguous(b, type), longs = checked_lengths(lengths, s);
  const OptionalTensor reset_c = as_contiguous(reset, ScalarType::Bool);
  const State initial(rounded(h0, x), c0, n0, m0, type, s, slstm);
  const NewState final(x, type, s, slstm);
  const Tensor h = empty(x, {s.batch, s.seqlen, s.num_heads, s.head_dim}, type);
  const Tensor saved = empty(x, save ? Shape{s.batch, s.seqlen, kSaved, s.num_heads, s.head_dim} : Shape{0}, type);
  if (s.batch == 0) return {as(h, x.scalar_type()), final.h, final.c, final.n, final.m, saved};
  const Tensor x_c = as(x, type), R_c = as_weights(R, type);
  // Named, as Clang before 16 captures no structured binding by [&].
  with_compute_type(type, [&, &cell = cell, &s = s](auto zero) {
    using T = decltype(zero);
    const RecurrentFwdParams<T> params = {s,
                                          cell,
                                          rounding_of(x),
                                          gate_view(pointer<T>(x_c), x_c),
                                          weight_view(pointer<T>(R_c), R_c),
                                          R.scalar_type() == ScalarType::BFloat16,
                                          pointer<T>(b_c),
                                          pointer<int64_t>(longs),
                                          flags(reset_c),
                                          initial.params<T>(),
                                          mutable_pointer<T>(h),
                                          final.params<T>(),
                                          save ? mutable_pointer<T>(saved) : nullptr};
    cpu::kernels<T>().recurrent_fwd(params, cpu_runtime());
  });
  return {as(h, x.scalar_type()), final.h, final.c, final.n, final.m, saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> recurrent_bwd(
    const Tensor& dh, OptionalTensor dhT, OptionalTensor dcT, OptionalTensor dnT, OptionalTensor dmT, const Tensor& R,
    const Tensor& h, OptionalTensor h0, OptionalTensor c0, OptionalTensor n0, OptionalTensor m0, const Tensor& cT,
    const Tensor& nT, const Tensor& saved, OptionalTensor lengths, OptionalTensor reset, int64_t cell_number,
    int64_t reversed_heads, bool /*allow_tf32*/) {
  NoGrad guard;
  const auto [cell, s, type, slstm] = RecurrentBwdCall(dh, R, h, saved, reset, cell_number, reversed_heads);
  const Tensor dh_c = as_contiguous(dh, type), h_c = as_contiguous(h, type), R_c = as_weights(R, type);
  const Tensor saved_c = as_contiguous(saved, type);
  const OptionalTensor longs = checked_lengths(lengths, s), reset_c = as_contiguous(reset, ScalarType::Bool);
  const OptionalTensor n_final = slstm ? OptionalTensor(nT) : std::nullopt;
  const State initial(rounded(h0, h), c0, n0, m0, type, s, slstm), final({}, cT, n_final, {}, type, s, slstm);
  const State final_grad(dhT, dcT, dnT, dmT, type, s, slstm);
  const NewState initial_grad(h, type, s, slstm);
  const Tensor dx = empty(h, {s.batch, s.seqlen, kGates, s.num_heads, s.head_dim}, type);
  const Tensor dR = empty(h, {kGates, s.num_heads, s.head_dim, s.head_dim}, type);
  const Tensor db = empty(h, {kGates, s.num_heads, s.head_dim}, type);
  with_compute_type(type, [&, &cell = cell, &s = s](auto zero) {
    using T = decltype(zero);
    const RecurrentBwdParams<T> params = {s,
                                          cell,
                                          weight_view(pointer<T>(R_c), R_c),
                                          R.scalar_type() == ScalarType::BFloat16,
                                          pointer<T>(h_c),
                                          pointer<T>(dh_c),
                                          pointer<T>(saved_c),
                                          pointer<int64_t>(longs),
                                          flags(reset_c),
                                          initial.params<T>(),
                                          final.params<T>(),
                                          final_grad.params<T>(),
                                          mutable_pointer<T>(dx),
                                          mutable_pointer<T>(dR),
                                          mutable_pointer<T>(db),
                                          initial_grad.params<T>()};
    cpu::kernels<T>().recurrent_bwd(params, cpu_runtime());
  });
  return {as(dx, h.scalar_type()), as(dR, R.scalar_type()), db, initial_grad.h, initial_grad.c,
          initial_grad.n,          initial_grad.m};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> recurrent_step(const Tensor& x, const Tensor& R, OptionalTensor b,
                                                          const Tensor& h, const Tensor& c, OptionalTensor n,
                                                          OptionalTensor m, int64_t cell_number) {
  NoGrad guard;
  const RecurrentStepCall call(x, R, b, h, c, n, m, cell_number);
  const OptionalTensor b_c = as_contiguous(b, call.type);
  const State state(rounded(h, x), c, n, m, call.type, call.shape, call.slstm);
  const NewState next(x, call.type, call.shape, call.slstm);
  check_normaliser(state.n);
  if (call.shape.batch == 0) return {next.h, next.c, next.n, next.m};
  const Tensor x_c = as(x, call.type), R_c = as_weights(R, call.type);
  with_compute_type(call.type, [&](auto zero) {
    using T = decltype(zero);
    const RecurrentStepParams<T> params = {call.shape,
                                           call.cell,
                                           rounding_of(x),
                                           token_view(pointer<T>(x_c), x_c),
                                           weight_view(pointer<T>(R_c), R_c),
                                           pointer<T>(b_c),
                                           state.params<T>(),
                                           next.params<T>()};
    cpu::kernels<T>().recurrent_step(params, cpu_runtime());
  });
  return {next.h, next.c, next.n, next.m};
}

}  // namespace

XLSTM_LIBRARY_IMPL(CPU, m) {
  m.impl("recurrent_fwd", TORCH_BOX(&recurrent_fwd));
  m.impl("recurrent_bwd", TORCH_BOX(&recurrent_bwd));
  m.impl("recurrent_step", TORCH_BOX(&recurrent_step));
}

}  // namespace xlstm::ops
