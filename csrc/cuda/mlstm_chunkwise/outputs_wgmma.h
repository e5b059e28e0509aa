#pragma once
#include "cuda/mlstm_chunkwise/outputs_instances.h"

namespace xlstm::cuda {

// Launches the kernel of outputs_wgmma.cu and gives its error; returns false, and has done nothing, where it cannot
// take this: it needs compute capability 9.0, tensors in bfloat16 that TMA can read (16 bytes between rows, heads and
// batch rows), and at most 512 contracted values.
bool outputs_wgmma(const MlstmOutputsParams<float>& params, const OutputsTiling& tiling, cudaStream_t stream,
                   cudaError_t& error);

}  // namespace xlstm::cuda
