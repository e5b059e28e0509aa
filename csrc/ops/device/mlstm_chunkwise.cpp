// mlstm_fwd, mlstm_bwd on CUDA kernels. Nothing is read back: values of cu_seqlens are checked on the executor only.
#include "ops/mlstm_chunkwise.h"

#include "cuda/mlstm_chunkwise/chunkwise.h"
#include "ops/device/mlstm_vectors.h"
#include "ops/device/session.h"
#include "ops/library.h"

namespace xlstm::ops {
namespace {

cuda::Product product_of(const Tensor& q, bool allow_tf32) {
  switch (q.scalar_type()) {
    case ScalarType::BFloat16:
      return cuda::Product::bf16;
    case ScalarType::Half:
      return cuda::Product::tf32;  // exact: a half has fewer digits than a tf32
    case ScalarType::Float:
      return allow_tf32 ? cuda::Product::tf32 : cuda::Product::tf32x3;
    default:
      return cuda::Product::f64;
  }
}

cuda::AnyView rows_in(Session& session, const Tensor& x) {
  const Tensor rows = as(x, x.scalar_type());
  return any_view(session.in(rows), rows);
}

// q, k, v, the gates and what goes with them; outputs are set by the caller.
template <class A>
cuda::MlstmForwardArguments<A> inputs(Session& session, const MlstmCall& call, bool allow_tf32) {
  cuda::MlstmForwardArguments<A> a{};
  a.shape = call.shape;
  a.shape.cu_seqlens = session.in_as<int32_t>(call.cu_seqlens);
  a.options = call.options;
  a.product = product_of(call.q, allow_tf32);
  a.q = rows_in(session, call.q), a.k = rows_in(session, call.k), a.v = rows_in(session, call.v);
  a.i = any_view(session.in(call.i), call.i), a.f = any_view(session.in(call.f), call.f);
  a.reset = flags(call.reset);
  a.reset.data = session.in_as<bool>(call.reset);
  a.initial = {session.in_as<A>(call.C0), session.in_as<A>(call.n0), session.in_as<A>(call.m0)};
  return a;
}

cuda::Allocator allocator(Session& session) {
  return {[](void* context, size_t bytes) { return static_cast<Session*>(context)->workspace(bytes); }, &session};
}

MlstmCall checked(const MlstmCall& call) {
  STD_TORCH_CHECK(call.k.scalar_type() == call.q.scalar_type() && call.v.scalar_type() == call.q.scalar_type(),
                  "mlstm: q, k, v must share a dtype");
  check_sizes("mlstm", kMaxDeviceDim, {{call.shape.seqlen}, {call.shape.head_dim_qk}, {call.shape.head_dim_v}});
  if (call.q.is_cpu()) call.check_sequences();
  return call;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> mlstm_fwd(const Tensor& q, const Tensor& k, const Tensor& v,
                                                             const Tensor& i, const Tensor& f, OptionalTensor C0,
                                                             OptionalTensor n0, OptionalTensor m0,
                                                             OptionalTensor cu_seqlens, OptionalTensor reset,
                                                             bool sigmoid_gate, bool normalize, double scale,
                                                             double eps, int64_t chunk_size, bool allow_tf32) {
  NoGrad guard;
  const MlstmCall call =
      checked({q, k, v, i, f, C0, n0, m0, cu_seqlens, reset, {sigmoid_gate, normalize, true, scale, eps, chunk_size}});
  const Output h(v, v.scalar_type());
  const Tensor C = empty(q, call.C_shape(), call.type), n = empty(q, call.n_shape(), call.type);
  const Tensor m = empty(q, call.m_shape(), call.type), r = empty(q, call.gate_shape(), call.type);
  with_compute_type(call.type, [&](auto zero) {
    using A = decltype(zero);
    Session session("mlstm", q);
    cuda::MlstmForwardArguments<A> a = inputs<A>(session, call, allow_tf32);
    a.h = any_view(session.out(h.computed()), h.computed());
    a.r = session.out_as<A>(r);
    a.final = {session.out_as<A>(C), session.out_as<A>(n), session.out_as<A>(m)};
    session.check(cuda::mlstm_forward(a, allocator(session), session.stream()));
    session.finish();
  });
  return {h.result(), C, n, m, r};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mlstm_bwd(
    const Tensor& dh, OptionalTensor dC, OptionalTensor dn, OptionalTensor dm, const Tensor& q, const Tensor& k,
    const Tensor& v, const Tensor& i, const Tensor& f, OptionalTensor C0, OptionalTensor n0, OptionalTensor m0,
    OptionalTensor cu_seqlens, OptionalTensor reset, const Tensor& h, const Tensor& r, bool sigmoid_gate,
    bool normalize, double scale, double eps, int64_t chunk_size, bool allow_tf32, bool norm_grad) {
  NoGrad guard;
  const MlstmCall call = checked(
      {q, k, v, i, f, C0, n0, m0, cu_seqlens, reset, {sigmoid_gate, normalize, norm_grad, scale, eps, chunk_size}});
  call.check_gradients(dh, dC, dn, dm, h, r);
  const ScalarType data = q.scalar_type();
  const Output dq(q, data), dk(k, data), dv(v, data), di(i, i.scalar_type()), df(f, f.scalar_type());
  const Tensor dC0 = empty(q, call.C_shape(), call.type), dn0 = empty(q, call.n_shape(), call.type);
  const Tensor dm0 = empty(q, call.m_shape(), call.type);
  const OptionalTensor dC_c = as_contiguous(dC, call.type), dn_c = as_contiguous(dn, call.type);
  const OptionalTensor dm_c = as_contiguous(dm, call.type);
  with_compute_type(call.type, [&](auto zero) {
    using A = decltype(zero);
    Session session("mlstm", q);
    cuda::MlstmBackwardArguments<A> a{};
    a.forward = inputs<A>(session, call, allow_tf32);
    a.forward.h = rows_in(session, as(h, data));
    a.forward.r = const_cast<A*>(static_cast<const A*>(session.in(as_contiguous(r, call.type))));
    a.dh = rows_in(session, as(dh, data));
    a.final_grad = {session.in_as<A>(dC_c), session.in_as<A>(dn_c), session.in_as<A>(dm_c)};
    const auto out = [&](const Output& x) { return any_view(session.out(x.computed()), x.computed()); };
    a.dq = out(dq), a.dk = out(dk), a.dv = out(dv), a.di = out(di), a.df = out(df);
    a.initial_grad = {session.out_as<A>(dC0), session.out_as<A>(dn0), session.out_as<A>(dm0)};
    session.check(cuda::mlstm_backward(a, allocator(session), session.stream()));
    session.finish();
  });
  return {dq.result(), dk.result(), dv.result(), di.result(), df.result(), dC0, dn0, dm0};
}

}  // namespace

XLSTM_DEVICE_LIBRARY_IMPL(m) {
  m.impl("mlstm_fwd", TORCH_BOX(&mlstm_fwd));
  m.impl("mlstm_bwd", TORCH_BOX(&mlstm_bwd));
}

}  // namespace xlstm::ops
