#include "cuda/recurrent/resident_fwd_instances.h"
#include "cuda/recurrent/resident_fwd_kernel.h"

namespace xlstm::cuda {

cudaError_t resident_fwd_tf32(const RecurrentForwardParams<void>& p, const RecurrentPlan& plan, void* padded_h,
                              cudaStream_t stream) {
  return launch_fwd<Fragments<float, Passes::one>>(p, plan, padded_h, stream);
}

}  // namespace xlstm::cuda
