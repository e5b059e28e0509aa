#include "cuda/recurrent/l2_rows.h"
#include "cuda/recurrent/resident.h"
#include "cuda/recurrent/resident_bwd_instances.h"

namespace xlstm::cuda {

size_t resident_bwd_workspace(const RecurrentBackwardParams<void>& p, const RecurrentPlan& plan) {
  return plan.variant == Variant::grid ? l2_rows_bytes(p.dx, p.shape, p.type, kGates) : 0;
}

cudaError_t resident_bwd(const RecurrentBackwardParams<void>& p, const RecurrentPlan& plan, void* workspace,
                         cudaStream_t stream) {
  void* const padded_draw = workspace ? workspace : p.dx;
  switch (p.type) {
    case Type::bf16:
      return resident_bwd_bf16(p, plan, padded_draw, stream);
    case Type::f16:
      return resident_bwd_f16(p, plan, padded_draw, stream);
    case Type::f32:
      return p.allow_tf32 ? resident_bwd_tf32(p, plan, padded_draw, stream)
                          : resident_bwd_tf32x3(p, plan, padded_draw, stream);
    case Type::f64:
      return resident_bwd_f64(p, plan, padded_draw, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace xlstm::cuda
