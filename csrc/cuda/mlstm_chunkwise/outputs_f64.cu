#include "cuda/mlstm_chunkwise/outputs_kernel.h"

namespace xlstm::cuda {

cudaError_t outputs_f64(const MlstmOutputsParams<double>& p, const OutputsTiling& tiling, cudaStream_t stream) {
  return launch_outputs<Product::f64, 1>(p, tiling, stream);
}

}  // namespace xlstm::cuda
