#pragma once
// The time loop in one kernel: the weights stay on the chip, in one block or in a team of blocks (plan.h, all variants
// but Variant::launch). cudaErrorLaunchOutOfResources: the device has no room for this plan.
#include "cuda/recurrent/plan.h"
#include "cuda/recurrent/scan.h"

namespace xlstm::cuda {

size_t resident_fwd_workspace(const RecurrentForwardParams<void>& params, const RecurrentPlan& plan);  // bytes
cudaError_t resident_fwd(const RecurrentForwardParams<void>& params, const RecurrentPlan& plan, void* workspace,
                         cudaStream_t stream);

size_t resident_bwd_workspace(const RecurrentBackwardParams<void>& params, const RecurrentPlan& plan);
cudaError_t resident_bwd(const RecurrentBackwardParams<void>& params, const RecurrentPlan& plan, void* workspace,
                         cudaStream_t stream);

}  // namespace xlstm::cuda
