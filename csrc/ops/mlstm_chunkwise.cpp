// mlstm_fwd, mlstm_bwd: the mLSTM over whole sequences.
#include "core/mlstm_chunkwise.h"

#include "cpu/kernels.h"
#include "ops/common.h"

namespace xlstm::ops {
namespace {

// The inputs in the compute type, with their views: keeps converted copies alive.
struct Inputs {
  Tensor q, k, v, i, f;
  OptionalTensor C0, n0, m0, cu_seqlens, reset;
  MlstmShape shape;
  MlstmOptions options;
  ScalarType type;

  Inputs(const Tensor& q_, const Tensor& k_, const Tensor& v_, const Tensor& i_, const Tensor& f_,
         const OptionalTensor& C0_, const OptionalTensor& n0_, const OptionalTensor& m0_,
         const OptionalTensor& cu_seqlens_, const OptionalTensor& reset_, const MlstmOptions& options_)
      : options(options_), type(compute_type(q_)) {
    STD_TORCH_CHECK(q_.dim() == 4 && v_.dim() == 4, "mlstm: q and v must have 4 dimensions");
    shape = {q_.size(0), q_.size(1), q_.size(2), q_.size(3), v_.size(3)};
    shape.num_sequences = cu_seqlens_ ? cu_seqlens_->size(0) - 1 : shape.batch;
    check(k_, v_, i_, f_, C0_, n0_, m0_, cu_seqlens_, reset_);
    q = as(q_, type), k = as(k_, type), v = as(v_, type), i = as(i_, type), f = as(f_, type);
    C0 = as_contiguous(C0_, type), n0 = as_contiguous(n0_, type), m0 = as_contiguous(m0_, type);
    cu_seqlens = as_contiguous(cu_seqlens_, ScalarType::Int);
    reset = as_contiguous(reset_, ScalarType::Bool);
    shape.cu_seqlens = pointer<int32_t>(cu_seqlens);
    check_sequences();
  }

  template <class T>
  MlstmInputs<T> params() const {
    return {shape,      options,      view<T>(q),
            view<T>(k), view<T>(v),   view<T>(i),
            view<T>(f), flags(reset), {pointer<T>(C0), pointer<T>(n0), pointer<T>(m0)}};
  }

  Shape C_shape() const { return {shape.num_sequences, shape.num_heads, shape.head_dim_qk, shape.head_dim_v}; }
  Shape n_shape() const { return {shape.num_sequences, shape.num_heads, shape.head_dim_qk}; }
  Shape m_shape() const { return {shape.num_sequences, shape.num_heads}; }

 private:
  void check(const Tensor& k_, const Tensor& v_, const Tensor& i_, const Tensor& f_, const OptionalTensor& C0_,
             const OptionalTensor& n0_, const OptionalTensor& m0_, const OptionalTensor& cu_seqlens_,
             const OptionalTensor& reset_) const {
    const int64_t B = shape.batch, H = shape.num_heads, S = shape.seqlen;
    check_dims("mlstm", {H, shape.head_dim_qk, shape.head_dim_v});
    check_shape("mlstm", "k", k_, {B, H, S, shape.head_dim_qk});
    check_shape("mlstm", "v", v_, {B, H, S, shape.head_dim_v});
    check_shape("mlstm", "i", i_, {B, H, S});
    check_shape("mlstm", "f", f_, {B, H, S});
    check_shape("mlstm", "C0", C0_, C_shape());
    check_shape("mlstm", "n0", n0_, n_shape());
    check_shape("mlstm", "m0", m0_, m_shape());
    check_shape("mlstm", "reset", reset_, {B, S});
    STD_TORCH_CHECK(C0_.has_value() == n0_.has_value() && n0_.has_value() == m0_.has_value(),
                    "mlstm: the initial state must have all of C, n and m");
    STD_TORCH_CHECK(!cu_seqlens_ || (cu_seqlens_->dim() == 1 && cu_seqlens_->size(0) >= 1 && B == 1),
                    "mlstm: cu_seqlens must have shape (N + 1,), with batch 1");
  }

  void check_sequences() const {
    if (!cu_seqlens) return;
    const int32_t* cu = shape.cu_seqlens;
    bool good = cu[0] == 0 && cu[shape.num_sequences] == shape.seqlen;
    for (int64_t n = 0; n < shape.num_sequences; ++n) good = good && cu[n] <= cu[n + 1];
    STD_TORCH_CHECK(good, "mlstm: cu_seqlens must rise from 0 to S");
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> mlstm_fwd(const Tensor& q, const Tensor& k, const Tensor& v,
                                                             const Tensor& i, const Tensor& f, OptionalTensor C0,
                                                             OptionalTensor n0, OptionalTensor m0,
                                                             OptionalTensor cu_seqlens, OptionalTensor reset,
                                                             bool sigmoid_gate, bool normalize, double scale,
                                                             double eps, int64_t chunk_size) {
  NoGrad guard;
  const Inputs in(q, k, v, i, f, C0, n0, m0, cu_seqlens, reset,
                  {sigmoid_gate, normalize, true, scale, eps, chunk_size});
  const Output h(v, in.type);
  const Tensor C = empty(q, in.C_shape(), in.type), n = empty(q, in.n_shape(), in.type);
  const Tensor m = empty(q, in.m_shape(), in.type);
  const Tensor r = empty(q, {in.shape.batch, in.shape.num_heads, in.shape.seqlen}, in.type);
  with_compute_type(in.type, [&](auto zero) {
    using T = decltype(zero);
    const MlstmFwdParams<T> params = {in.params<T>(),
                                      mutable_view<T>(h.computed()),
                                      mutable_pointer<T>(r),
                                      {mutable_pointer<T>(C), mutable_pointer<T>(n), mutable_pointer<T>(m)}};
    cpu::kernels<T>().mlstm_fwd(params, cpu_runtime());
  });
  return {h.result(), C, n, m, r};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mlstm_bwd(
    const Tensor& dh, OptionalTensor dC, OptionalTensor dn, OptionalTensor dm, const Tensor& q, const Tensor& k,
    const Tensor& v, const Tensor& i, const Tensor& f, OptionalTensor C0, OptionalTensor n0, OptionalTensor m0,
    OptionalTensor cu_seqlens, OptionalTensor reset, const Tensor& h, const Tensor& r, bool sigmoid_gate,
    bool normalize, double scale, double eps, int64_t chunk_size, bool norm_grad) {
  NoGrad guard;
  const Inputs in(q, k, v, i, f, C0, n0, m0, cu_seqlens, reset,
                  {sigmoid_gate, normalize, norm_grad, scale, eps, chunk_size});
  const Shape h_shape = {in.shape.batch, in.shape.num_heads, in.shape.seqlen, in.shape.head_dim_v};
  check_shape("mlstm", "dh", dh, h_shape);
  check_shape("mlstm", "h", h, h_shape);
  check_shape("mlstm", "r", r, {in.shape.batch, in.shape.num_heads, in.shape.seqlen});
  check_shape("mlstm", "dC", dC, in.C_shape());
  check_shape("mlstm", "dn", dn, in.n_shape());
  check_shape("mlstm", "dm", dm, in.m_shape());
  const Tensor dh_c = as(dh, in.type), h_c = as(h, in.type), r_c = as_contiguous(r, in.type);
  const OptionalTensor dC_c = as_contiguous(dC, in.type), dn_c = as_contiguous(dn, in.type);
  const OptionalTensor dm_c = as_contiguous(dm, in.type);
  const Output dq(q, in.type), dk(k, in.type), dv(v, in.type), di(i, in.type), df(f, in.type);
  const Tensor dC0 = empty(q, in.C_shape(), in.type), dn0 = empty(q, in.n_shape(), in.type);
  const Tensor dm0 = empty(q, in.m_shape(), in.type);
  with_compute_type(in.type, [&](auto zero) {
    using T = decltype(zero);
    const MlstmBwdParams<T> params = {in.params<T>(),
                                      view<T>(h_c),
                                      view<T>(dh_c),
                                      pointer<T>(r_c),
                                      {pointer<T>(dC_c), pointer<T>(dn_c), pointer<T>(dm_c)},
                                      mutable_view<T>(dq.computed()),
                                      mutable_view<T>(dk.computed()),
                                      mutable_view<T>(dv.computed()),
                                      mutable_view<T>(di.computed()),
                                      mutable_view<T>(df.computed()),
                                      {mutable_pointer<T>(dC0), mutable_pointer<T>(dn0), mutable_pointer<T>(dm0)}};
    cpu::kernels<T>().mlstm_bwd(params, cpu_runtime());
  });
  return {dq.result(), dk.result(), dv.result(), di.result(), df.result(), dC0, dn0, dm0};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(xlstm_cuda, CPU, m) {
  m.impl("mlstm_fwd", TORCH_BOX(&mlstm_fwd));
  m.impl("mlstm_bwd", TORCH_BOX(&mlstm_bwd));
}

}  // namespace xlstm::ops
