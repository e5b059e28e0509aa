#include "cuda/recurrent/inbox.h"
#include "cuda/recurrent/resident.h"
#include "cuda/recurrent/resident_bwd_instances.h"

namespace xlstm::cuda {

size_t resident_bwd_workspace(const RecurrentBackwardParams<void>& p, const RecurrentPlan& plan) {
  return plan.variant == Variant::grid ? grid_inbox_bytes(p.shape, plan) : 0;
}

cudaError_t resident_bwd(const RecurrentBackwardParams<void>& p, const RecurrentPlan& plan, void* workspace,
                         cudaStream_t stream) {
  switch (p.type) {
    case Type::bf16:
      return resident_bwd_bf16(p, plan, workspace, stream);
    case Type::f16:
      return resident_bwd_f16(p, plan, workspace, stream);
    case Type::f32:
      return p.allow_tf32 ? resident_bwd_tf32(p, plan, workspace, stream)
                          : resident_bwd_tf32x3(p, plan, workspace, stream);
    case Type::f64:
      return resident_bwd_f64(p, plan, workspace, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace xlstm::cuda
