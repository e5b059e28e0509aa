#pragma once
// The LSTM and the sLSTM over whole sequences on CUDA devices: the best plan (plan.h) that the device takes.
#include <optional>

#include "core/recurrent.h"
#include "cuda/recurrent/plan.h"
#include "cuda/types.h"

namespace xlstm::cuda {

cudaError_t run(const RecurrentForwardParams<void>& params, const Allocator& memory, cudaStream_t stream);
cudaError_t run(const RecurrentBackwardParams<void>& params, const Allocator& memory, cudaStream_t stream);

// For tests and benchmarks: the one variant to use, none for the best that fits. Returns the one before.
std::optional<Variant> only_variant(std::optional<Variant> variant);

}  // namespace xlstm::cuda
