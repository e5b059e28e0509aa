#include "cuda/mlstm_chunkwise/outputs_kernel.h"

namespace xlstm::cuda {

cudaError_t outputs_tf32x3(const MlstmOutputsParams<float>& p, const OutputsTiling& tiling, cudaStream_t stream) {
  return launch_outputs<Product::tf32x3, 2>(p, tiling, stream);
}

}  // namespace xlstm::cuda
