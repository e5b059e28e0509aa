#pragma once
// Norm over heads with weight, skip and gate on CUDA devices (docs/kernels/norm.md).
#include "core/norm.h"
#include "cuda/types.h"

namespace xlstm::cuda {

cudaError_t run(const NormForwardParams<void>& params, const Allocator& memory, cudaStream_t stream);

template <class A>
cudaError_t run(const NormBackwardParams<void, A>& params, const Allocator& memory, cudaStream_t stream);

// ---- Its parts ----

constexpr int64_t kNormTokens = 32;         // of a run: whose rows have one row of partial sums
constexpr int64_t kNormRegisterDim = 2048;  // of a row that is kept in registers

XLSTM_HOST_DEVICE inline int64_t norm_runs(const NormShape& shape) {
  return (shape.tokens() + kNormTokens - 1) / kNormTokens;
}

// Whether the kernels that keep a row in registers take a call: they do not compute in double.
inline bool norm_fits_registers(const NormForwardParams<void>& p) {
  return p.shape.dim <= kNormRegisterDim && p.h.type != Type::f64;
}

cudaError_t norm_fwd_registers(const NormForwardParams<void>& params, cudaStream_t stream);
template <class A>
cudaError_t norm_fwd_any(const NormForwardParams<void>& params, cudaStream_t stream);

// dh, dgate, dskip, and the sums of each run (runs, kNormSums, H D), of those that are asked for.
cudaError_t norm_bwd_registers(const NormBackwardParams<void, float>& params, float* sums, cudaStream_t stream);
template <class A>
cudaError_t norm_bwd_any(const NormBackwardParams<void, A>& params, A* sums, cudaStream_t stream);
// The sums over all runs, in a fixed order.
template <class A>
cudaError_t norm_add_up(const NormBackwardParams<void, A>& params, const A* sums, cudaStream_t stream);

}  // namespace xlstm::cuda
