#pragma once
// The LSTM and the sLSTM over whole sequences on CUDA devices: the best plan (plan.h) that the device takes.
#include "core/recurrent.h"
#include "cuda/recurrent/plan.h"
#include "cuda/types.h"

namespace xlstm::cuda {

cudaError_t run(const RecurrentForwardParams<void>& params, const Allocator& memory, cudaStream_t stream);
cudaError_t run(const RecurrentBackwardParams<void>& params, const Allocator& memory, cudaStream_t stream);

// For tests and benchmarks: what plans are to be like from now on. Returns the request before.
PlanRequest request_plans(const PlanRequest& request);

}  // namespace xlstm::cuda
