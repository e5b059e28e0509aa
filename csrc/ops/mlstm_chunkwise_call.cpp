#include "ops/mlstm_chunkwise.h"

namespace xlstm::ops {

void check_sizes(const char* op, const MlstmShape& s) {
  check_sizes(op, kMaxElements,
              {{s.batch, s.num_heads, s.seqlen, s.head_dim_qk},
               {s.batch, s.num_heads, s.seqlen, s.head_dim_v},
               {s.num_sequences, s.num_heads, s.head_dim_qk, s.head_dim_v}});
  check_sizes(op, kMaxWork, {{s.batch, s.num_heads, s.seqlen, s.head_dim_qk, s.head_dim_v}});
}

MlstmCall::MlstmCall(const Tensor& q_, const Tensor& k_, const Tensor& v_, const Tensor& i_, const Tensor& f_,
                     const OptionalTensor& C0_, const OptionalTensor& n0_, const OptionalTensor& m0_,
                     const OptionalTensor& cu_seqlens_, const OptionalTensor& reset_, const MlstmOptions& options_)
    : q(q_), k(k_), v(v_), i(i_), f(f_), options(options_) {
  check_given("mlstm", {&q, &k, &v, &i, &f});
  type = compute_type(q);
  STD_TORCH_CHECK(q.dim() == 4 && v.dim() == 4, "mlstm: q and v must have 4 dimensions");
  for (const Tensor* x : {&q, &k, &v, &i, &f}) check_float("mlstm", "every input", *x);
  shape = {q.size(0), q.size(1), q.size(2), q.size(3), v.size(3)};
  STD_TORCH_CHECK(!cu_seqlens_ || (cu_seqlens_->dim() == 1 && cu_seqlens_->size(0) >= 1 && shape.batch == 1),
                  "mlstm: cu_seqlens must have shape (N + 1,), with batch 1");
  shape.num_sequences = cu_seqlens_ ? cu_seqlens_->size(0) - 1 : shape.batch;
  const int64_t B = shape.batch, H = shape.num_heads, S = shape.seqlen;
  check_dims("mlstm", {H, shape.head_dim_qk, shape.head_dim_v});
  check_sizes("mlstm", shape);
  check_shape("mlstm", "k", k, {B, H, S, shape.head_dim_qk});
  check_shape("mlstm", "v", v, h_shape());
  check_shape("mlstm", "i", i, gate_shape());
  check_shape("mlstm", "f", f, gate_shape());
  check_shape("mlstm", "C0", C0_, C_shape());
  check_shape("mlstm", "n0", n0_, n_shape());
  check_shape("mlstm", "m0", m0_, m_shape());
  check_shape("mlstm", "reset", reset_, {B, S});
  STD_TORCH_CHECK(C0_.has_value() == n0_.has_value() && n0_.has_value() == m0_.has_value(),
                  "mlstm: the initial state must have all of C, n and m");
  C0 = as_contiguous(C0_, type), n0 = as_contiguous(n0_, type), m0 = as_contiguous(m0_, type);
  cu_seqlens = as_contiguous(cu_seqlens_, ScalarType::Int);
  reset = as_contiguous(reset_, ScalarType::Bool);
}

void MlstmCall::check_gradients(const Tensor& dh, const OptionalTensor& dC, const OptionalTensor& dn,
                                const OptionalTensor& dm, const Tensor& h, const Tensor& r) const {
  check_given("mlstm", {&dh, &h, &r});
  check_shape("mlstm", "dh", dh, h_shape());
  check_shape("mlstm", "h", h, h_shape());
  check_shape("mlstm", "r", r, gate_shape());
  check_shape("mlstm", "dC", dC, C_shape());
  check_shape("mlstm", "dn", dn, n_shape());
  check_shape("mlstm", "dm", dm, m_shape());
}

void MlstmCall::check_sequences() const {
  if (!cu_seqlens) return;
  const int32_t* cu = pointer<int32_t>(cu_seqlens);
  bool good = cu[0] == 0 && cu[shape.num_sequences] == shape.seqlen;
  for (int64_t n = 0; n < shape.num_sequences; ++n) good = good && cu[n] <= cu[n + 1];
  STD_TORCH_CHECK(good, "mlstm: cu_seqlens must rise from 0 to S");
}

}  // namespace xlstm::ops
