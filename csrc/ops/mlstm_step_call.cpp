#include "ops/mlstm_step.h"

namespace xlstm::ops {

StepCall::StepCall(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& i, const Tensor& f) {
  check_given("mlstm_step", {&q, &k, &v, &i, &f});
  type = compute_type(q), has_time = q.dim() == 4;
  STD_TORCH_CHECK(q.dim() == 3 || q.dim() == 4, "mlstm_step: q must have 3 or 4 dimensions");
  STD_TORCH_CHECK(v.dim() == q.dim(), "mlstm_step: v must have as many dimensions as q");
  const ScalarType data = q.scalar_type();
  STD_TORCH_CHECK(k.scalar_type() == data && v.scalar_type() == data, "mlstm_step: q, k, v must share a dtype");
  const int64_t S = has_time ? q.size(2) : 1;
  shape = {q.size(0), q.size(1), S, q.size(-1), v.size(-1)};
  shape.num_sequences = shape.batch;
  check_dims("mlstm_step", {shape.num_heads, shape.head_dim_qk, shape.head_dim_v});
  check_sizes("mlstm_step", shape);
  STD_TORCH_CHECK(S <= kMaxStepTokens, "mlstm_step: takes at most 16 tokens, got ", S);
  for (const Tensor* x : {&q, &i, &f}) check_float("mlstm_step", "every input", *x);
  check_shape("mlstm_step", "k", k, tokens(shape.head_dim_qk));
  check_shape("mlstm_step", "v", v, tokens(shape.head_dim_v));
  check_shape("mlstm_step", "i", i, tokens());
  check_shape("mlstm_step", "f", f, tokens());
}

void StepCall::check_state(const Tensor& C, const Tensor& n, const Tensor& m, int64_t rows) const {
  check_given("mlstm_step", {&C, &n, &m});
  for (const Tensor* x : {&C, &n, &m}) check_float("mlstm_step", "the state", *x);
  check_shape("mlstm_step", "C", C, {rows, shape.num_heads, shape.head_dim_qk, shape.head_dim_v});
  check_shape("mlstm_step", "n", n, {rows, shape.num_heads, shape.head_dim_qk});
  check_shape("mlstm_step", "m", m, {rows, shape.num_heads});
}

void StepCall::check_inplace_state(const Tensor& C, const Tensor& n, const Tensor& m,
                                   const OptionalTensor& slots) const {
  check_given("mlstm_step", {&C});
  STD_TORCH_CHECK(C.dim() == 4, "mlstm_step: C must have 4 dimensions, got ", shape_string(C));
  check_state(C, n, m, slots ? C.size(0) : shape.batch);
  const bool half_C = C.scalar_type() == ScalarType::BFloat16 && type == ScalarType::Float;
  STD_TORCH_CHECK((C.scalar_type() == type || half_C) && n.scalar_type() == type && m.scalar_type() == type,
                  "mlstm_step: an in-place state must be of the compute dtype, or C of bfloat16");
  for (const Tensor* x : {&C, &n, &m}) {
    STD_TORCH_CHECK(x->size(-1) <= 1 || x->stride(-1) == 1, "mlstm_step: an in-place state must have contiguous rows");
  }
  check_own_memory("mlstm_step", {{"C", &C}, {"n", &n}, {"m", &m}});
  check_shape("mlstm_step", "slots", slots, {shape.batch});
}

void check_slots(const OptionalTensor& slots, int64_t rows) {
  if (!slots) return;
  const OptionalTensor values = as_contiguous(slots, ScalarType::Int);
  std::vector<bool> used(static_cast<size_t>(rows));
  for (int64_t b = 0; b < values->size(0); ++b) {
    const int32_t slot = pointer<int32_t>(*values)[b];
    STD_TORCH_CHECK(slot >= 0 && slot < rows, "mlstm_step: slots[", b, "] = ", slot, " is not a row of the state");
    STD_TORCH_CHECK(!used[slot], "mlstm_step: slots names row ", slot, " twice");
    used[slot] = true;
  }
}

}  // namespace xlstm::ops
