// recurrent_weight_grad: the gradients of R and b by themselves, for tests and for whoever studies the kernel.
#include "cuda/recurrent/weight_grad.h"
#include "ops/backends/device.h"
#include "ops/library.h"
#include "ops/recurrent.h"

namespace xlstm::ops {
namespace {

// All but reset are contiguous. splits: as in RecurrentWeightGradParams.
std::tuple<Tensor, Tensor> recurrent_weight_grad(const Tensor& dx, const Tensor& h, OptionalTensor initial_h,
                                                 OptionalTensor lengths, OptionalTensor reset, int64_t reversed_heads,
                                                 bool allow_tf32, int64_t splits) {
  NoGrad guard;
  const RecurrentShape s = {h.size(0), h.size(1), h.size(2), h.size(3), reversed_heads};
  check_shape("recurrent_weight_grad", "dx", dx, {s.batch, s.seqlen, kGates, s.num_heads, s.head_dim});
  check_shape("recurrent_weight_grad", "initial_h", initial_h, {s.batch, s.num_heads, s.head_dim});
  check_shape("recurrent_weight_grad", "reset", reset, {s.batch, s.seqlen});
  const ScalarType type = compute_type(h);
  const OptionalTensor start = as_contiguous(initial_h, type);
  const Tensor dR = empty(h, {kGates, s.num_heads, s.head_dim, s.head_dim}, h.scalar_type());
  const Tensor db = empty(h, {kGates, s.num_heads, s.head_dim}, type);
  DeviceSession session("recurrent_weight_grad", h);
  const Flags resets = reset ? Flags{in_as<bool>(session, reset), reset->stride(0), reset->stride(1)} : Flags{};
  const cuda::RecurrentWeightGradParams params = {s,
                                                  type_of(h),
                                                  allow_tf32,
                                                  session.in(dx),
                                                  session.in(h),
                                                  in_as<void>(session, start),
                                                  in_as<int64_t>(session, checked_lengths(lengths, s)),
                                                  resets,
                                                  session.out(dR),
                                                  session.out(db),
                                                  static_cast<int>(splits)};
  const size_t bytes = cuda::recurrent_weight_grad_workspace(params);
  session.check(cuda::recurrent_weight_grad(params, bytes ? session.workspace(bytes) : nullptr, session.stream()));
  session.finish();
  return {dR, db};
}

}  // namespace

XLSTM_LIBRARY_FRAGMENT(m) {
  m.def(
      "recurrent_weight_grad(Tensor dx, Tensor h, Tensor? initial_h, Tensor? lengths, Tensor? reset, "
      "int reversed_heads, bool allow_tf32, int splits) -> (Tensor dR, Tensor db)");
}

XLSTM_LIBRARY_IMPL(CPU, m) {
  m.impl("recurrent_weight_grad", TORCH_BOX(&recurrent_weight_grad));
}

}  // namespace xlstm::ops
