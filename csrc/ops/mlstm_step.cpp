// mlstm_step, mlstm_step_ on the CPU: the mLSTM on up to 16 tokens, with the state as an explicit argument.
#include "ops/mlstm_step.h"

#include "cpu/kernels.h"
#include "ops/library.h"

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

using StateTensors = std::tuple<Tensor, Tensor, Tensor>;

// The inputs in the compute type.
struct Step : StepCall {
  Tensor q, k, v, i, f;

  Step(const Tensor& q_, const Tensor& k_, const Tensor& v_, const Tensor& i_, const Tensor& f_)
      : StepCall(q_, k_, v_, i_, f_),
        q(as(q_, type)),
        k(as(k_, type)),
        v(as(v_, type)),
        i(as(i_, type)),
        f(as(f_, type)) {}

  // h, shaped as v, contiguous, from `state` to `next`, which may be the same. All memory is taken before the state
  // changes.
  Tensor run(const Tensor& like, const MlstmOptions& options, const StateTensors& state, const StateTensors& next,
             const OptionalTensor& slots) const {
    const Tensor result = empty(like, tokens(shape.head_dim_v), like.scalar_type());
    if (shape.seqlen == 0) return result;
    const Tensor h = like.scalar_type() == type ? result : empty(like, tokens(shape.head_dim_v), type);
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
    if (h.get() != result.get()) overwrite(result, h);
    return result;
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
  step.check_inplace_state(C, n, m, slots);
  check_slots(slots, C.size(0));
  const OptionalTensor rows = as_contiguous(slots, ScalarType::Int);
  const Tensor wide = as(C, step.type);
  const Tensor h = step.run(q, {sigmoid_gate, normalize, true, scale, eps, 0}, {wide, n, m}, {wide, n, m}, rows);
  if (C.scalar_type() != step.type) overwrite(C, wide);
  return h;
}

}  // namespace

XLSTM_LIBRARY_IMPL(CPU, m) {
  m.impl("mlstm_step", TORCH_BOX(&mlstm_step));
  m.impl("mlstm_step_", TORCH_BOX(&mlstm_step_));
}

}  // namespace xlstm::ops
