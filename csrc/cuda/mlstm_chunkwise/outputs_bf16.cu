#include "cuda/mlstm_chunkwise/outputs_kernel.h"

namespace xlstm::cuda {

cudaError_t outputs_bf16(const MlstmOutputsParams<float>& p, const OutputsTiling& tiling, cudaStream_t stream) {
  if (tiling.blocks <= 2) return launch_outputs<Product::bf16, 2>(p, tiling, stream);
  return launch_outputs<Product::bf16, 4>(p, tiling, stream);
}

}  // namespace xlstm::cuda
