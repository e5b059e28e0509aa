#pragma once
// The kernels of outputs_kernel.h, kMaxBlocks times 64 columns a block: each product is a source of its own.
#include "cuda/mlstm_chunkwise/outputs.h"

namespace xlstm::cuda {

// How the output is cut into the work of blocks; the same for all of them.
struct OutputsTiling {
  int slots;         // of chunks, per batch row and head
  int row_tiles;     // of a chunk
  int column_tiles;  // of the output
  int blocks;        // of 64 columns, in a column tile
  bool resident;     // all of X's rows stay in shared memory; else they come again with every step
};

cudaError_t outputs_bf16(const MlstmOutputsParams<float>&, const OutputsTiling&, cudaStream_t);
cudaError_t outputs_tf32(const MlstmOutputsParams<float>&, const OutputsTiling&, cudaStream_t);
cudaError_t outputs_tf32x3(const MlstmOutputsParams<float>&, const OutputsTiling&, cudaStream_t);
cudaError_t outputs_f64(const MlstmOutputsParams<double>&, const OutputsTiling&, cudaStream_t);

}  // namespace xlstm::cuda
