#pragma once
// The chunkwise mLSTM on CUDA devices: which kernels run, in which order, on which intermediate results. q, k and v are
// of one type; A is double for f64 data, else float.
#include "core/mlstm_chunkwise.h"
#include "cuda/mlstm_chunkwise/plan.h"
#include "cuda/types.h"

namespace xlstm::cuda {

// Of what a forward pass keeps for the backward pass where params.kept is given: the gate vectors, and the states that
// enter chunks. Without them the backward pass computes both again.
template <class A>
size_t kept_bytes(const MlstmForwardParams<void, A>& params);

template <class A>
cudaError_t run(const MlstmForwardParams<void, A>& params, const Allocator& memory, cudaStream_t stream);
template <class A>
cudaError_t run(const MlstmBackwardParams<void, A>& params, const Allocator& memory, cudaStream_t stream);

// For tests and benchmarks: what plans are to be like from now on; with a request that cannot be met calls fail.
// Returns the request before.
MlstmRequest request_mlstm(const MlstmRequest& request);

}  // namespace xlstm::cuda
