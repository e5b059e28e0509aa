#pragma once
// One token of the LSTM and the sLSTM on CUDA devices. The h before is rounded to `type` here.
#include "core/recurrent.h"
#include "cuda/types.h"

namespace xlstm::cuda {

cudaError_t run(const RecurrentStepParams<void>& params, const Allocator&, cudaStream_t stream);

}  // namespace xlstm::cuda
