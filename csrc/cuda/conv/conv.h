#pragma once
// The causal depthwise convolution on CUDA devices (docs/kernels/conv.md).
#include "core/conv.h"
#include "cuda/types.h"

namespace xlstm::cuda {

cudaError_t run(const ConvForwardParams<void>& params, const Allocator& memory, cudaStream_t stream);

template <class A>
cudaError_t run(const ConvBackwardParams<void, A>& params, const Allocator& memory, cudaStream_t stream);

// ---- Its parts ----

constexpr int kFewTaps = 4;          // the window of the fast kernels
constexpr int64_t kConvTokens = 32;  // of a run, forward; at least kMaxStepTokens, so that a step in place is one run
constexpr int64_t kConvGradTokens = 64;  // of a run, backward

// Whether the kernels that keep the window in registers take a call: they do not compute in double.
inline bool has_few_taps(const ConvForwardParams<void>& p) {
  return p.shape.taps <= kFewTaps && p.x.type != Type::f64;
}

cudaError_t conv_fwd_few(const ConvForwardParams<void>& params, cudaStream_t stream);
// With dy also: g (B, S, F), the gradient of the pre-activation, in the place of y.
template <class A>
cudaError_t conv_fwd_any(const ConvForwardParams<void>& params, const AnyView& dy, A* g, cudaStream_t stream);

// dx and dstate, and the sums of each run (slots, K + 1, F): of the weights by distance, then of the bias.
cudaError_t conv_bwd_few(const ConvBackwardParams<void, float>& params, float* sums, cudaStream_t stream);
template <class A>
cudaError_t conv_bwd_any(const ConvBackwardParams<void, A>& params, const A* g, A* sums, cudaStream_t stream);
// dweight and dbias, from the sums of so many runs, in a fixed order.
template <class A>
cudaError_t conv_add_up(const ConvBackwardParams<void, A>& params, const A* sums, int64_t slots, cudaStream_t stream);

}  // namespace xlstm::cuda
