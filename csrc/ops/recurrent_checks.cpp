#include "ops/recurrent.h"

namespace xlstm::ops {

Cell cell_of(int64_t number) {
  STD_TORCH_CHECK(number >= 0 && number < kCells, "recurrent: cell must be from 0 to ", kCells - 1, ", got ", number);
  return static_cast<Cell>(number);
}

void check_weights(const Tensor& R, const OptionalTensor& b, const RecurrentShape& s, int64_t max_dim) {
  check_dims("recurrent", {s.num_heads, s.head_dim});
  check_sizes("recurrent", kMaxElements,
              {{s.batch, s.seqlen, kSaved, s.num_heads, s.head_dim}, {kGates, s.num_heads, s.head_dim, s.head_dim}});
  check_sizes("recurrent", kMaxWork, {{s.batch, kGates, s.head_dim, s.head_dim}});
  check_sizes("recurrent", max_dim, {{s.batch}, {s.seqlen}});
  STD_TORCH_CHECK(s.reversed_heads >= 0 && s.reversed_heads <= s.num_heads, "recurrent: reversed_heads must be 0 to ",
                  s.num_heads, ", got ", s.reversed_heads);
  check_shape("recurrent", "R", R, {kGates, s.num_heads, s.head_dim, s.head_dim});
  check_shape("recurrent", "b", b, {kGates, s.num_heads, s.head_dim});
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

}  // namespace xlstm::ops
