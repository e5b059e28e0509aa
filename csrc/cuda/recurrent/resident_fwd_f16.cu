#include "cuda/recurrent/resident_fwd_instances.h"
#include "cuda/recurrent/resident_fwd_kernel.h"

namespace xlstm::cuda {

cudaError_t resident_fwd_f16(const RecurrentForwardParams<void>& p, const RecurrentPlan& plan, void* padded_h,
                             cudaStream_t stream) {
  return launch_fwd<Fragments<__half>>(p, plan, padded_h, stream);
}

}  // namespace xlstm::cuda
