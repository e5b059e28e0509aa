#include "ops/recurrent.h"

namespace xlstm::ops {

Cell cell_of(int64_t number) {
  const bool known = number >= static_cast<int64_t>(Cell::lstm) && number <= static_cast<int64_t>(Cell::slstm_exp);
  STD_TORCH_CHECK(known, "recurrent: cell must be 0 (lstm), 1 (slstm) or 2 (slstm_exp), got ", number);
  return static_cast<Cell>(number);
}

void check_weights(const Tensor& R, const OptionalTensor& b, const RecurrentShape& s) {
  check_dims("recurrent", {s.num_heads, s.head_dim});
  check_sizes("recurrent", kMaxElements,
              {{s.batch, s.seqlen, kSaved, s.num_heads, s.head_dim}, {kGates, s.num_heads, s.head_dim, s.head_dim}});
  check_sizes("recurrent", kMaxWork, {{s.batch, kGates, s.head_dim, s.head_dim}});
  STD_TORCH_CHECK(s.reversed_heads >= 0 && s.reversed_heads <= s.num_heads, "recurrent: reversed_heads must be 0 to ",
                  s.num_heads, ", got ", s.reversed_heads);
  check_shape("recurrent", "R", R, {kGates, s.num_heads, s.head_dim, s.head_dim});
  check_shape("recurrent", "b", b, {kGates, s.num_heads, s.head_dim});
}

void check_normaliser(const OptionalTensor& n) {
  if (!n) return;
  with_compute_type(n->scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    for (int64_t k = 0; k < n->numel(); ++k)
      STD_TORCH_CHECK(!(pointer<T>(*n)[k] < 0), "recurrent: n must not be negative");
  });
}

Tensor as_weights(const Tensor& R, ScalarType type) {
  const Tensor x = R.scalar_type() == type ? R : torch::stable::to(R, type);
  return x.stride(-1) == 1 || x.stride(-2) == 1 ? x : torch::stable::contiguous(x);
}

OptionalTensor rounded(const OptionalTensor& h, const Tensor& like) {
  return h ? OptionalTensor(as(*h, like.scalar_type())) : h;
}

State::State(const OptionalTensor& h_, const OptionalTensor& c_, const OptionalTensor& n_, const OptionalTensor& m_,
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

NewState::NewState(const Tensor& like, ScalarType type, const RecurrentShape& s, bool slstm_) : slstm(slstm_) {
  const Shape shape = {s.batch, s.num_heads, s.head_dim}, none = {0};
  h = empty(like, shape, type), c = empty(like, shape, type);
  n = empty(like, slstm ? shape : none, type), m = empty(like, slstm ? shape : none, type);
}

OptionalTensor checked_lengths(const OptionalTensor& lengths, const RecurrentShape& s) {
  check_shape("recurrent", "lengths", lengths, {s.batch});
  OptionalTensor longs = as_contiguous(lengths, ScalarType::Long);
  for (int64_t b = 0; longs && longs->is_cpu() && b < s.batch; ++b) {
    const int64_t length = pointer<int64_t>(*longs)[b];
    STD_TORCH_CHECK(length >= 0 && length <= s.seqlen, "recurrent: lengths[", b, "] = ", length, " is not in [0, S]");
  }
  return longs;
}

RecurrentFwdCall::RecurrentFwdCall(const Tensor& x, const Tensor& R, const OptionalTensor& b,
                                   const OptionalTensor& reset, int64_t cell_number, int64_t reversed_heads)
    : cell(cell_of(cell_number)), slstm(has_normaliser(cell)) {
  check_given("recurrent", {&x, &R});
  for (const Tensor* t : {&x, &R}) check_float("recurrent", "every input", *t);
  type = compute_type(x);
  STD_TORCH_CHECK(x.dim() == 5 && x.size(2) == kGates, "recurrent: x must have shape (B, S, 4, H, D), got ",
                  shape_string(x));
  shape = {x.size(0), x.size(1), x.size(3), x.size(4), reversed_heads};
  check_weights(R, b, shape);
  STD_TORCH_CHECK(R.scalar_type() == x.scalar_type(), "recurrent: x and R must share a dtype");
  check_shape("recurrent", "reset", reset, {shape.batch, shape.seqlen});
}

RecurrentBwdCall::RecurrentBwdCall(const Tensor& dh, const Tensor& R, const Tensor& h, const Tensor& saved,
                                   const OptionalTensor& reset, int64_t cell_number, int64_t reversed_heads)
    : cell(cell_of(cell_number)), slstm(has_normaliser(cell)) {
  check_given("recurrent", {&dh, &R, &h, &saved});
  for (const Tensor* t : {&dh, &R, &h, &saved}) check_float("recurrent", "every input", *t);
  type = compute_type(h);
  STD_TORCH_CHECK(h.dim() == 4, "recurrent: h must have shape (B, S, H, D), got ", shape_string(h));
  shape = {h.size(0), h.size(1), h.size(2), h.size(3), reversed_heads};
  check_weights(R, {}, shape);
  check_shape("recurrent", "dh", dh, {shape.batch, shape.seqlen, shape.num_heads, shape.head_dim});
  check_shape("recurrent", "saved", saved, {shape.batch, shape.seqlen, kSaved, shape.num_heads, shape.head_dim});
  check_shape("recurrent", "reset", reset, {shape.batch, shape.seqlen});
}

RecurrentStepCall::RecurrentStepCall(const Tensor& x, const Tensor& R, const OptionalTensor& b, const Tensor& h,
                                     const Tensor& c, const OptionalTensor& n, const OptionalTensor& m,
                                     int64_t cell_number)
    : cell(cell_of(cell_number)), slstm(has_normaliser(cell)) {
  check_given("recurrent", {&x, &R, &h, &c});
  type = compute_type(x);
  STD_TORCH_CHECK(x.dim() == 4 && x.size(1) == kGates, "recurrent: x must have shape (B, 4, H, D), got ",
                  shape_string(x));
  shape = {x.size(0), 1, x.size(2), x.size(3)};
  check_weights(R, b, shape);
  STD_TORCH_CHECK(!slstm || (n && m), "recurrent: the sLSTM state must have n and m");
  STD_TORCH_CHECK(R.scalar_type() == x.scalar_type(), "recurrent: x and R must share a dtype");
  for (const Tensor* t : {&x, &h, &c}) check_float("recurrent", "every input", *t);
  for (const OptionalTensor& t : {b, n, m}) {
    if (t) check_float("recurrent", "every input", *t);
  }
}

}  // namespace xlstm::ops
