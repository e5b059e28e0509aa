// recurrent_fwd, recurrent_bwd, recurrent_step: LSTM and sLSTM, over whole sequences and one token at a time.
#include "core/recurrent.h"

#include "cpu/kernels.h"
#include "ops/common.h"

namespace xlstm::ops {
namespace {

Cell cell_named(const std::string& name) {
  if (name == "lstm") return Cell::lstm;
  if (name == "slstm") return Cell::slstm;
  STD_TORCH_CHECK(name == "slstm_exp", "recurrent: cell must be lstm, slstm or slstm_exp, got ", name);
  return Cell::slstm_exp;
}

Rounding rounding_of(const Tensor& x) {
  if (x.scalar_type() == ScalarType::BFloat16) return Rounding::bfloat16;
  return x.scalar_type() == ScalarType::Half ? Rounding::float16 : Rounding::none;
}

// (B, S, 4, H, D)
template <class T>
GateView<const T> gate_view(const Tensor& x) {
  return {pointer<T>(x), x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

// R with contiguous rows or contiguous columns: a layer may keep either, and a copy would cost more than a step.
Tensor as_weights(const Tensor& R, ScalarType type) {
  const Tensor x = R.scalar_type() == type ? R : torch::stable::to(R, type);
  return x.stride(-1) == 1 || x.stride(-2) == 1 ? x : torch::stable::contiguous(x);
}

template <class T>
WeightView<const T> weight_view(const Tensor& R) {
  const bool one = R.size(-1) == 1;  // a 1 x 1 matrix may come with any strides
  return {pointer<T>(R), R.stride(0), R.stride(1), one ? 1 : R.stride(2), one ? 1 : R.stride(3)};
}

// An initial h in the precision of the outputs: the recurrence never sees more.
OptionalTensor rounded(const OptionalTensor& h, const Tensor& like) {
  return h ? OptionalTensor(as(*h, like.scalar_type())) : h;
}

// The four tensors of a state in the compute type; any may be absent.
struct State {
  OptionalTensor h, c, n, m;

  State(const OptionalTensor& h_, const OptionalTensor& c_, const OptionalTensor& n_, const OptionalTensor& m_,
        ScalarType type, const RecurrentShape& s, bool slstm) {
    const Shape shape = {s.batch, s.num_heads, s.head_dim};
    check_shape("recurrent", "h", h_, shape);
    check_shape("recurrent", "c", c_, shape);
    h = as_contiguous(h_, type), c = as_contiguous(c_, type);
    if (!slstm) return;
    check_shape("recurrent", "n", n_, shape);
    check_shape("recurrent", "m", m_, shape);
    n = as_contiguous(n_, type), m = as_contiguous(m_, type);
  }

  template <class T>
  RecurrentState<const T> params() const {
    return {pointer<T>(h), pointer<T>(c), pointer<T>(n), pointer<T>(m)};
  }
};

// A state to be written; n and m have shape (0,) for the LSTM.
struct NewState {
  Tensor h, c, n, m;
  bool slstm;

  NewState(const Tensor& like, ScalarType type, const RecurrentShape& s, bool slstm_) : slstm(slstm_) {
    const Shape shape = {s.batch, s.num_heads, s.head_dim}, none = {0};
    h = empty(like, shape, type), c = empty(like, shape, type);
    n = empty(like, slstm ? shape : none, type), m = empty(like, slstm ? shape : none, type);
  }

  template <class T>
  RecurrentState<T> params() const {
    return {mutable_pointer<T>(h), mutable_pointer<T>(c), slstm ? mutable_pointer<T>(n) : nullptr,
            slstm ? mutable_pointer<T>(m) : nullptr};
  }
};

OptionalTensor checked_lengths(const OptionalTensor& lengths, const RecurrentShape& s) {
  check_shape("recurrent", "lengths", lengths, {s.batch});
  OptionalTensor longs = as_contiguous(lengths, ScalarType::Long);
  for (int64_t b = 0; longs && b < s.batch; ++b) {
    const int64_t length = pointer<int64_t>(*longs)[b];
    STD_TORCH_CHECK(length >= 0 && length <= s.seqlen, "recurrent: lengths[", b, "] = ", length, " is not in [0, S]");
  }
  return longs;
}

void check_weights(const Tensor& R, const OptionalTensor& b, const RecurrentShape& s) {
  check_dims("recurrent", {s.num_heads, s.head_dim});
  check_shape("recurrent", "R", R, {kGates, s.num_heads, s.head_dim, s.head_dim});
  check_shape("recurrent", "b", b, {kGates, s.num_heads, s.head_dim});
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> recurrent_fwd(
    const Tensor& x, const Tensor& R, OptionalTensor b, OptionalTensor h0, OptionalTensor c0, OptionalTensor n0,
    OptionalTensor m0, OptionalTensor lengths, OptionalTensor reset, std::string cell_name, bool save) {
  NoGrad guard;
  const Cell cell = cell_named(cell_name);
  STD_TORCH_CHECK(x.dim() == 5 && x.size(2) == kGates, "recurrent: x must have shape (B, S, 4, H, D), got ",
                  shape_string(x));
  const RecurrentShape s = {x.size(0), x.size(1), x.size(3), x.size(4)};
  check_weights(R, b, s);
  check_shape("recurrent", "reset", reset, {s.batch, s.seqlen});
  const ScalarType type = compute_type(x);
  const bool slstm = cell != Cell::lstm;
  const Tensor x_c = as(x, type), R_c = as_weights(R, type);
  const OptionalTensor b_c = as_contiguous(b, type), longs = checked_lengths(lengths, s);
  const OptionalTensor reset_c = as_contiguous(reset, ScalarType::Bool);
  const State initial(rounded(h0, x), c0, n0, m0, type, s, slstm);
  const NewState final(x, type, s, slstm);
  const Tensor h = empty(x, {s.batch, s.seqlen, s.num_heads, s.head_dim}, type);
  const Tensor saved = empty(x, save ? Shape{s.batch, s.seqlen, kSaved, s.num_heads, s.head_dim} : Shape{0}, type);
  with_compute_type(type, [&](auto zero) {
    using T = decltype(zero);
    const RecurrentFwdParams<T> params = {s,
                                          cell,
                                          rounding_of(x),
                                          gate_view<T>(x_c),
                                          weight_view<T>(R_c),
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
    const Tensor& nT, const Tensor& saved, OptionalTensor lengths, OptionalTensor reset, std::string cell_name) {
  NoGrad guard;
  const Cell cell = cell_named(cell_name);
  STD_TORCH_CHECK(h.dim() == 4, "recurrent: h must have shape (B, S, H, D), got ", shape_string(h));
  const RecurrentShape s = {h.size(0), h.size(1), h.size(2), h.size(3)};
  check_weights(R, {}, s);
  check_shape("recurrent", "dh", dh, {s.batch, s.seqlen, s.num_heads, s.head_dim});
  check_shape("recurrent", "saved", saved, {s.batch, s.seqlen, kSaved, s.num_heads, s.head_dim});
  check_shape("recurrent", "reset", reset, {s.batch, s.seqlen});
  const ScalarType type = compute_type(h);
  const bool slstm = cell != Cell::lstm;
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
  with_compute_type(type, [&](auto zero) {
    using T = decltype(zero);
    const RecurrentBwdParams<T> params = {s,
                                          cell,
                                          weight_view<T>(R_c),
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
                                                          OptionalTensor m, std::string cell_name) {
  NoGrad guard;
  const Cell cell = cell_named(cell_name);
  STD_TORCH_CHECK(x.dim() == 4 && x.size(1) == kGates, "recurrent: x must have shape (B, 4, H, D), got ",
                  shape_string(x));
  const RecurrentShape s = {x.size(0), 1, x.size(2), x.size(3)};
  check_weights(R, b, s);
  const ScalarType type = compute_type(x);
  const bool slstm = cell != Cell::lstm;
  STD_TORCH_CHECK(!slstm || (n && m), "recurrent: the sLSTM state must have n and m");
  STD_TORCH_CHECK(R.scalar_type() == x.scalar_type(), "recurrent: x and R must share a dtype");
  for (const Tensor* t : {&x, &h, &c}) check_float("recurrent", "every input", *t);
  for (const OptionalTensor& t : {b, n, m}) {
    if (t) check_float("recurrent", "every input", *t);
  }
  const Tensor x_c = as(x, type), R_c = as_weights(R, type);
  const OptionalTensor b_c = as_contiguous(b, type);
  const State state(rounded(h, x), c, n, m, type, s, slstm);
  const NewState next(x, type, s, slstm);
  with_compute_type(type, [&](auto zero) {
    using T = decltype(zero);
    const T* norm = slstm ? pointer<T>(state.n) : nullptr;
    for (int64_t k = 0; norm && k < s.batch * s.hidden(); ++k)
      STD_TORCH_CHECK(!(norm[k] < 0), "recurrent: n must not be negative");
    const GateView<const T> gates = {pointer<T>(x_c), x_c.stride(0), 0, x_c.stride(1), x_c.stride(2)};
    const RecurrentStepParams<T> params = {
        s, cell, rounding_of(x), gates, weight_view<T>(R_c), pointer<T>(b_c), state.params<T>(), next.params<T>()};
    cpu::kernels<T>().recurrent_step(params, cpu_runtime());
  });
  return {next.h, next.c, next.n, next.m};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(xlstm_cuda, CPU, m) {
  m.impl("recurrent_fwd", TORCH_BOX(&recurrent_fwd));
  m.impl("recurrent_bwd", TORCH_BOX(&recurrent_bwd));
  m.impl("recurrent_step", TORCH_BOX(&recurrent_step));
}

}  // namespace xlstm::ops
