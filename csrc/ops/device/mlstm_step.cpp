// mlstm_step, mlstm_step_ on CUDA kernels. Nothing is read back: wrong slots on a device give NaN, not an error.
#include "cuda/mlstm_step/mlstm_step.h"

#include "ops/device/session.h"
#include "ops/library.h"
#include "ops/mlstm_step.h"

namespace xlstm::ops {
namespace {

using StateTensors = std::tuple<Tensor, Tensor, Tensor>;

// (B, H, S, D), or (B, H, D) for one token; gates (B, H, S) or (B, H).
cuda::AnyView token_view(const void* data, const Tensor& x, bool has_time) {
  return {data, type_of(x), x.stride(0), x.stride(1), has_time ? x.stride(2) : 0};
}

cuda::StepStateView state_view(const StateTensors& state, const void* C_data, const void* n_data, const void* m_data) {
  const auto& [C, n, m] = state;
  return {{C_data, type_of(C)},
          C.stride(0),
          C.stride(1),
          C.stride(2),
          const_cast<void*>(n_data),
          n.stride(0),
          n.stride(1),
          const_cast<void*>(m_data),
          m.stride(0),
          m.stride(1)};
}

// h from `state` to `next`; without `next` the state is overwritten.
Tensor run(const StepCall& call, const std::vector<Tensor>& inputs, const StateTensors& state, const StateTensors* next,
           const OptionalTensor& slots, const MlstmOptions& options) {
  const Tensor &q = inputs[0], &v = inputs[2];
  const Tensor h = empty(q, call.tokens(call.shape.head_dim_v), q.scalar_type());
  Session session("mlstm_step", q);
  cuda::AnyView views[5];
  for (int x = 0; x < 5; ++x) {
    const Tensor rows = x < 3 ? as(inputs[x], inputs[x].scalar_type()) : inputs[x];
    views[x] = token_view(session.in(rows), rows, call.has_time);
  }
  const auto& [C, n, m] = state;
  cuda::StepStateView before, after;
  if (next) {
    const auto& [C1, n1, m1] = *next;
    before = state_view(state, session.in(C), session.in(n), session.in(m));
    after = state_view(*next, session.out(C1), session.out(n1), session.out(m1));
  } else {
    before = after = state_view(state, session.inout(C), session.inout(n), session.inout(m));
  }
  const cuda::MlstmStepArguments arguments = {call.shape,
                                              options,
                                              views[0],
                                              views[1],
                                              views[2],
                                              views[3],
                                              views[4],
                                              token_view(session.out(h), h, call.has_time),
                                              before,
                                              after,
                                              session.in_as<int32_t>(slots),
                                              C.size(0),
                                              session.workspace(cuda::mlstm_step_workspace(call.shape, type_of(v)))};
  session.check(cuda::mlstm_step(arguments, session.stream()));
  session.finish();
  return h;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> mlstm_step(const Tensor& q, const Tensor& k, const Tensor& v,
                                                      const Tensor& i, const Tensor& f, const Tensor& C,
                                                      const Tensor& n, const Tensor& m, bool sigmoid_gate,
                                                      bool normalize, double scale, double eps) {
  NoGrad guard;
  const StepCall call(q, k, v, i, f);
  check_sizes("mlstm_step", kMaxDeviceDim, {{call.shape.head_dim_qk}, {call.shape.head_dim_v}});
  call.check_state(C, n, m, call.shape.batch);
  const StateTensors state = {as(C, call.type), as(n, call.type), m.scalar_type() == call.type ? m : as(m, call.type)};
  const auto& [C0, n0, m0] = state;
  if (call.shape.seqlen == 0) {
    return {empty(q, call.tokens(call.shape.head_dim_v), q.scalar_type()), torch::stable::clone(C0),
            torch::stable::clone(n0), torch::stable::clone(m0)};
  }
  const StateTensors next = {empty(q, Shape(C.sizes().begin(), C.sizes().end()), call.type),
                             empty(q, Shape(n.sizes().begin(), n.sizes().end()), call.type),
                             empty(q, {call.shape.batch, call.shape.num_heads}, call.type)};
  const MlstmOptions options = {sigmoid_gate, normalize, true, scale, eps, 0};
  const Tensor h = run(call, {q, k, v, i, f}, state, &next, {}, options);
  const auto& [C1, n1, m1] = next;
  return {h, C1, n1, m1};
}

Tensor mlstm_step_(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& i, const Tensor& f, Tensor C,
                   Tensor n, Tensor m, OptionalTensor slots, bool sigmoid_gate, bool normalize, double scale,
                   double eps) {
  NoGrad guard;
  const StepCall call(q, k, v, i, f);
  check_sizes("mlstm_step", kMaxDeviceDim, {{call.shape.head_dim_qk}, {call.shape.head_dim_v}});
  call.check_inplace_state(C, n, m, slots);
  if (C.is_cpu()) check_slots(slots, C.size(0));
  const OptionalTensor rows = as_contiguous(slots, ScalarType::Int);
  return run(call, {q, k, v, i, f}, {C, n, m}, nullptr, rows, {sigmoid_gate, normalize, true, scale, eps, 0});
}

}  // namespace

XLSTM_DEVICE_LIBRARY_IMPL(m) {
  m.impl("mlstm_step", TORCH_BOX(&mlstm_step));
  m.impl("mlstm_step_", TORCH_BOX(&mlstm_step_));
}

}  // namespace xlstm::ops
