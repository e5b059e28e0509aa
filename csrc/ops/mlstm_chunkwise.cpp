// mlstm_fwd, mlstm_bwd on the CPU: the mLSTM over whole sequences.
#include "ops/mlstm_chunkwise.h"

#include "cpu/kernels.h"
#include "ops/library.h"

namespace xlstm::ops {
namespace {

// The inputs in the compute type, with their views.
struct Inputs : MlstmCall {
  template <class... Arguments>
  explicit Inputs(const Arguments&... arguments) : MlstmCall(arguments...) {
    check_sequences();
    q = as(q, type), k = as(k, type), v = as(v, type), i = as(i, type), f = as(f, type);
    shape.cu_seqlens = pointer<int32_t>(cu_seqlens);
  }

  template <class T>
  MlstmInputs<T> params() const {
    return {shape,      options,      view<T>(q),
            view<T>(k), view<T>(v),   view<T>(i),
            view<T>(f), flags(reset), {pointer<T>(C0), pointer<T>(n0), pointer<T>(m0)}};
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> mlstm_fwd(const Tensor& q, const Tensor& k, const Tensor& v,
                                                             const Tensor& i, const Tensor& f, OptionalTensor C0,
                                                             OptionalTensor n0, OptionalTensor m0,
                                                             OptionalTensor cu_seqlens, OptionalTensor reset,
                                                             bool sigmoid_gate, bool normalize, double scale,
                                                             double eps, int64_t chunk_size, bool /*allow_tf32*/) {
  NoGrad guard;
  const Inputs in(q, k, v, i, f, C0, n0, m0, cu_seqlens, reset,
                  MlstmOptions{sigmoid_gate, normalize, true, scale, eps, chunk_size});
  const Output h(v, in.type);
  const Tensor C = empty(q, in.C_shape(), in.type), n = empty(q, in.n_shape(), in.type);
  const Tensor m = empty(q, in.m_shape(), in.type);
  const Tensor r = empty(q, in.gate_shape(), in.type);
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
    bool normalize, double scale, double eps, int64_t chunk_size, bool /*allow_tf32*/, bool norm_grad) {
  NoGrad guard;
  const Inputs in(q, k, v, i, f, C0, n0, m0, cu_seqlens, reset,
                  MlstmOptions{sigmoid_gate, normalize, norm_grad, scale, eps, chunk_size});
  in.check_gradients(dh, dC, dn, dm, h, r);
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

XLSTM_LIBRARY_IMPL(CPU, m) {
  m.impl("mlstm_fwd", TORCH_BOX(&mlstm_fwd));
  m.impl("mlstm_bwd", TORCH_BOX(&mlstm_bwd));
}

}  // namespace xlstm::ops
