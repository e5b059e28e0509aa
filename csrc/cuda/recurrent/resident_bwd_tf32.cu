#include "cuda/recurrent/resident_bwd_instances.h"
#include "cuda/recurrent/resident_bwd_kernel.h"

namespace xlstm::cuda {

cudaError_t resident_bwd_tf32(const RecurrentBackwardParams<void>& p, const RecurrentPlan& plan, void* padded_draw,
                              cudaStream_t stream) {
  return launch_resident_bwd<Fragments<float, Passes::one>>(p, plan, padded_draw, stream);
}

}  // namespace xlstm::cuda
