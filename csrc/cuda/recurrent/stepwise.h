#pragma once
// A launch per step, which reads R anew: for every head dimension, batch and type. Variant::launch of plan.h.
#include "cuda/recurrent/scan.h"

namespace xlstm::cuda {

size_t stepwise_fwd_workspace(const RecurrentForwardParams<void>& params);  // bytes
cudaError_t stepwise_fwd(const RecurrentForwardParams<void>& params, void* workspace, cudaStream_t stream);

size_t stepwise_bwd_workspace(const RecurrentBackwardParams<void>& params);
cudaError_t stepwise_bwd(const RecurrentBackwardParams<void>& params, void* workspace, cudaStream_t stream);

}  // namespace xlstm::cuda
