#include "cuda/recurrent/resident_bwd_instances.h"
#include "cuda/recurrent/resident_bwd_kernel.h"

namespace xlstm::cuda {

cudaError_t resident_bwd_f64(const RecurrentBackwardParams<void>& p, const RecurrentPlan& plan, void* padded_draw,
                             cudaStream_t stream) {
  return launch_resident_bwd<Fragments<double>>(p, plan, padded_draw, stream);
}

}  // namespace xlstm::cuda
