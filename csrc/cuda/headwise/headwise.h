#pragma once
// Linear maps of small blocks of features on CUDA devices (docs/kernels/headwise.md).
#include "core/headwise.h"
#include "cuda/types.h"

namespace xlstm::cuda {

cudaError_t run(const HeadwiseForwardParams<void>& params, const Allocator& memory, cudaStream_t stream);

template <class A>
cudaError_t run(const HeadwiseBackwardParams<void, A>& params, const Allocator& memory, cudaStream_t stream);

// ---- Its parts ----

constexpr int64_t kHeadwiseTokens = 32;      // of a run, forward
constexpr int64_t kHeadwiseGradTokens = 64;  // of a run, backward, and of a row of partial sums

// Runs of so many tokens, each within a row of x.
XLSTM_HOST_DEVICE inline int64_t headwise_runs(const HeadwiseShape& shape, int64_t length) {
  return shape.batch * ((shape.seqlen + length - 1) / length);
}

// Whether the kernels that keep a block's weights in registers take a call: they do not compute in double.
inline bool has_usual_blocks(const HeadwiseForwardParams<void>& p) {
  const HeadwiseShape& s = p.shape;
  for (int map = 0; map < s.maps; ++map) {
    if (s.out[map] != kUsualBlock) return false;
  }
  return s.in == kUsualBlock && p.x.type != Type::f64;
}

cudaError_t headwise_fwd_usual(const HeadwiseForwardParams<void>& params, cudaStream_t stream);
// dx, and the sums of each run: those of the shape, one map after the other.
cudaError_t headwise_bwd_usual(const HeadwiseBackwardParams<void, float>& params, float* sums, cudaStream_t stream);

template <class A>
cudaError_t headwise_fwd_any(const HeadwiseForwardParams<void>& params, cudaStream_t stream);
template <class A>
cudaError_t headwise_bwd_any(const HeadwiseBackwardParams<void, A>& params, A* sums, cudaStream_t stream);
// dweight and dbias, from the sums of all runs, in a fixed order.
template <class A>
cudaError_t headwise_add_up(const HeadwiseBackwardParams<void, A>& params, const A* sums, cudaStream_t stream);

}  // namespace xlstm::cuda
