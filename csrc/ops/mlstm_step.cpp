// mlstm_step, mlstm_step_: the mLSTM on up to 16 tokens, with the state as an explicit argument.
#include "core/mlstm_step.h"

#include "cpu/kernels.h"
#include "ops/common.h"

namespace xlstm::ops {
namespace {

template <class T>
StepState<const T> state_view(const Tensor& C, const Tensor& n, const Tensor& m) {
  return {pointer<T>(C), C.stride(0), C.stride(1),   C.stride(2), pointer<T>(n),
          n.stride(0),   n.stride(1), pointer<T>(m), m.stride(0), m.stride(1)};
}
template <class T>
StepState<T> mutable_state_view(const Tensor& C, const Tensor& n, const Tensor& m) {
  return {mutable_pointer<T>(C), C.stride(0), C.stride(1),           C.stride(2), mutable_pointer<T>(n),
          n.stride(0),           n.stride(1), mutable_pointer<T>(m), m.stride(0), m.stride(1)};
}

// (B, H, S, D), or (B, H, D) for one token; gates (B, H, S) or (B, H).
template <class T>
View<const T> token_view(const Tensor& x, bool has_time) {
  return {pointer<T>(x), x.stride(0), x.stride(1), has_time ? x.stride(2) : 0};
}

struct Step {
  Tensor q, k, v, i, f;
  MlstmShape shape;
  ScalarType type;
  bool has_time;

  Step(const Tensor& q_, const Tensor& k_, const Tensor& v_, const Tensor& i_, const Tensor& f_)
      : type(compute_type(q_)), has_time(q_.dim() == 4) {
    STD_TORCH_CHECK(q_.dim() == 3 || q_.dim() == 4, "mlstm_step: q must have 3 or 4 dimensions");
    STD_TORCH_CHECK(v_.dim() == q_.dim(), "mlstm_step: v must have as many dimensions as q");
    const ScalarType data = q_.scalar_type();
    STD_TORCH_CHECK(k_.scalar_type() == data && v_.scalar_type() == data, "mlstm_step: q, k, v must share a dtype");
    const int64_t S = has_time ? q_.size(2) : 1;
    shape = {q_.size(0), q_.size(1), S, q_.size(-1), v_.size(-1)};
    shape.num_sequences = shape.batch;
    check_dims("mlstm_step", {shape.num_heads, shape.head_dim_qk, shape.head_dim_v});
    STD_TORCH_CHECK(S <= kMaxStepTokens, "mlstm_step: takes at most 16 tokens, got ", S);
    for (const Tensor* x : {&q_, &i_, &f_}) check_float("mlstm_step", "every input", *x);
    check_shape("mlstm_step", "k", k_, tokens(shape.head_dim_qk));
    check_shape("mlstm_step", "v", v_, tokens(shape.head_dim_v));
    check_shape("mlstm_step", "i", i_, tokens());
    check_shape("mlstm_step", "f", f_, tokens());
    q = as(q_, type), k = as(k_, type), v = as(v_, type), i = as(i_, type), f = as(f_, type);
  }

  // (B, H[, S]) and what follows.
  template <class... D>
  Shape tokens(D... dims) const {
    return has_time ? Shape{shape.batch, shape.num_heads, shape.seqlen, dims...}
                    : Shape{shape.batch, shape.num_heads, dims...};
  }

  void check_state(const Tensor& C, const Tensor& n, const Tensor& m, int64_t rows) const {
    for (const Tensor* x : {&C, &n, &m}) check_float("mlstm_step", "the state", *x);
    check_shape("mlstm_step", "C", C, {rows, shape.num_heads, shape.head_dim_qk, shape.head_dim_v});
    check_shape("mlstm_step", "n", n, {rows, shape.num_heads, shape.head_dim_qk});
    check_shape("mlstm_step", "m", m, {rows, shape.num_heads});
  }

  // h, shaped as v, contiguous, from `state` to `next`, which may be the same.
  Tensor run(const Tensor& like, const MlstmOptions& options, const std::tuple<Tensor, Tensor, Tensor>& state,
             const std::tuple<Tensor, Tensor, Tensor>& next, const OptionalTensor& slots) const {
    Tensor h = empty(like, tokens(shape.head_dim_v), type);
    if (shape.seqlen == 0) return as(h, like.scalar_type());
    with_compute_type(type, [&](auto zero) {
      using T = decltype(zero);
      const auto& [C, n, m] = state;
      const auto& [C1, n1, m1] = next;
      const MlstmStepParams<T> params = {shape,
                                         options,
                                         token_view<T>(q, has_time),
                                         token_view<T>(k, has_time),
                                         token_view<T>(v, has_time),
                                         token_view<T>(i, has_time),
                                         token_view<T>(f, has_time),
                                         {mutable_pointer<T>(h), h.stride(0), h.stride(1), has_time ? h.stride(2) : 0},
                                         state_view<T>(C, n, m),
                                         mutable_state_view<T>(C1, n1, m1),
                                         pointer<int32_t>(slots)};
      cpu::kernels<T>().mlstm_step(params, cpu_runtime());
    });
    return as(h, like.scalar_type());
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> mlstm_step(const Tensor& q, const Tensor& k, const Tensor& v,
                                                      const Tensor& i, const Tensor& f, const Tensor& C,
                                                      const Tensor& n, const Tensor& m, bool sigmoid_gate,
                                                      bool normalize, double scale, double eps) {
  NoGrad guard;
  const Step step(q, k, v, i, f);
  step.check_state(C, n, m, step.shape.batch);
  const Tensor C0 = as(C, step.type), n0 = as(n, step.type), m0 = as(m, step.type);
  if (step.shape.seqlen == 0) {
    const Tensor h = step.run(q, {}, {C0, n0, m0}, {C0, n0, m0}, {});
    return {h, torch::stable::clone(C0), torch::stable::clone(n0), torch::stable::clone(m0)};
  }
  const Shape C_shape(C.sizes().begin(), C.sizes().end()), n_shape(n.sizes().begin(), n.sizes().end());
  const Tensor C1 = empty(q, C_shape, step.type), n1 = empty(q, n_shape, step.type);
  const Tensor m1 = empty(q, {step.shape.batch, step.shape.num_heads}, step.type);
  const Tensor h = step.run(q, {sigmoid_gate, normalize, true, scale, eps, 0}, {C0, n0, m0}, {C1, n1, m1}, {});
  return {h, C1, n1, m1};
}

Tensor mlstm_step_(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& i, const Tensor& f, Tensor C,
                   Tensor n, Tensor m, OptionalTensor slots, bool sigmoid_gate, bool normalize, double scale,
                   double eps) {
  NoGrad guard;
  const Step step(q, k, v, i, f);
  STD_TORCH_CHECK(C.dim() == 4, "mlstm_step: C must have 4 dimensions, got ", shape_string(C));
  step.check_state(C, n, m, slots ? C.size(0) : step.shape.batch);
  for (const Tensor& x : {C, n, m}) {
    STD_TORCH_CHECK(x.scalar_type() == step.type, "mlstm_step: an in-place state must be of the compute dtype");
  }
  for (const Tensor& x : {C, n}) {
    STD_TORCH_CHECK(x.size(-1) <= 1 || x.stride(-1) == 1, "mlstm_step: an in-place state must have contiguous rows");
  }
  for (const Tensor& x : {C, n, m}) {
    for (int64_t d = 0; d < x.dim(); ++d)
      STD_TORCH_CHECK(x.size(d) <= 1 || x.stride(d) != 0, "mlstm_step: an in-place state must not be expanded");
  }
  check_shape("mlstm_step", "slots", slots, {step.shape.batch});
  const OptionalTensor rows = as_contiguous(slots, ScalarType::Int);
  std::vector<bool> used(static_cast<size_t>(C.size(0)));
  for (int64_t b = 0; rows && b < step.shape.batch; ++b) {
    const int32_t slot = pointer<int32_t>(*rows)[b];
    STD_TORCH_CHECK(slot >= 0 && slot < C.size(0), "mlstm_step: slots[", b, "] = ", slot, " is not a row of the state");
    STD_TORCH_CHECK(!used[slot], "mlstm_step: slots names row ", slot, " twice");
    used[slot] = true;
  }
  return step.run(q, {sigmoid_gate, normalize, true, scale, eps, 0}, {C, n, m}, {C, n, m}, rows);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(xlstm_cuda, CPU, m) {
  m.impl("mlstm_step", TORCH_BOX(&mlstm_step));
  m.impl("mlstm_step_", TORCH_BOX(&mlstm_step_));
}

}  // namespace xlstm::ops
