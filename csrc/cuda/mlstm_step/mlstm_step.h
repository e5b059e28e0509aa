#pragma once
// The mLSTM decode step on CUDA devices.
#include "core/mlstm_step.h"
#include "cuda/types.h"

namespace xlstm::cuda {

cudaError_t run(const MlstmStepParams<void>& params, const Allocator& memory, cudaStream_t stream);

}  // namespace xlstm::cuda
