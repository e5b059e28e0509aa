#pragma once
#include "cuda/mlstm_chunkwise/states.h"

namespace xlstm::cuda {

StatesCost states_wgmma_cost(const MlstmShape& shape);

// Product::bf16, from tensors that TMA can read. alone: segments by themselves.
cudaError_t states_wgmma(const MlstmStatesParams<float>& params, bool alone, cudaStream_t stream);

}  // namespace xlstm::cuda
