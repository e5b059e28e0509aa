#include "cuda/mlstm_chunkwise/outputs_kernel.h"

namespace xlstm::cuda {

cudaError_t outputs_tf32(const MlstmOutputsParams<float>& p, const OutputsTiling& tiling, cudaStream_t stream) {
  return launch_outputs<Product::tf32, 2>(p, tiling, stream);
}

}  // namespace xlstm::cuda
