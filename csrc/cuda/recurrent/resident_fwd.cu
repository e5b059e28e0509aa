// Which instance of resident_fwd_kernel.h runs a plan.
#include "cuda/recurrent/l2_rows.h"
#include "cuda/recurrent/resident.h"
#include "cuda/recurrent/resident_fwd_instances.h"

namespace xlstm::cuda {

size_t resident_fwd_workspace(const RecurrentForwardParams<void>& p, const RecurrentPlan& plan) {
  return plan.variant == Variant::grid ? l2_rows_bytes(p.h, p.shape, p.type, 1) : 0;
}

cudaError_t resident_fwd(const RecurrentForwardParams<void>& p, const RecurrentPlan& plan, void* workspace,
                         cudaStream_t stream) {
  void* const padded_h = workspace ? workspace : p.h;
  switch (p.type) {
    case Type::bf16:
      return resident_fwd_bf16(p, plan, padded_h, stream);
    case Type::f16:
      return resident_fwd_f16(p, plan, padded_h, stream);
    case Type::f32:
      return p.allow_tf32 ? resident_fwd_tf32(p, plan, padded_h, stream)
                          : resident_fwd_tf32x3(p, plan, padded_h, stream);
    case Type::f64:
      return resident_fwd_f64(p, plan, padded_h, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace xlstm::cuda
