#pragma once
#include "cuda/mlstm_chunkwise/outputs_instances.h"

namespace xlstm::cuda {

// Whether heads of these dimensions fit: at most 512 contracted values, Dv a multiple of 8. blocks: of 64 columns in a
// column tile. room: bytes of shared memory.
bool outputs_wgmma_takes(OutputKind output, const MlstmShape& shape, int blocks, size_t room);

// Product::bf16, compute capability 9.0, tensors that TMA can read.
cudaError_t outputs_wgmma(const MlstmOutputsParams<float>& params, const OutputsTiling& tiling, cudaStream_t stream);

}  // namespace xlstm::cuda
