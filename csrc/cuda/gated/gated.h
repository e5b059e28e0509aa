#pragma once
// The gated activation on CUDA devices (docs/kernels/gated.md).
#include "core/gated.h"
#include "cuda/types.h"

namespace xlstm::cuda {

cudaError_t run(const GatedForwardParams& params, const Allocator& memory, cudaStream_t stream);
cudaError_t run(const GatedBackwardParams& params, const Allocator& memory, cudaStream_t stream);

}  // namespace xlstm::cuda
