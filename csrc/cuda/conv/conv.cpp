#include "cuda/conv/conv.h"

namespace xlstm::cuda {

cudaError_t run(const ConvForwardParams<void>& p, const Allocator&, cudaStream_t stream) {
  if (has_few_taps(p)) return conv_fwd_few(p, stream);
  if (p.x.type == Type::f64) return conv_fwd_any<double>(p, {}, nullptr, stream);
  return conv_fwd_any<float>(p, {}, nullptr, stream);
}

template <class A>
cudaError_t run(const ConvBackwardParams<void, A>& p, const Allocator& memory, cudaStream_t stream) {
  const ConvShape& s = p.forward.shape;
  const int64_t slots = conv_slots(s, kConvGradTokens);
  A* sums = memory.get<A>(slots * (s.taps + 1) * s.features);
  cudaError_t error = cudaSuccess;
  bool done = false;
  if constexpr (sizeof(A) == 4) {
    done = has_few_taps(p.forward);
    if (done) error = conv_bwd_few(p, sums, stream);
  }
  if (!done) {
    A* g = memory.get<A>(s.batch * s.seqlen * s.features);
    error = conv_fwd_any<A>(p.forward, p.dy, g, stream);
    if (error == cudaSuccess) error = conv_bwd_any<A>(p, g, sums, stream);
  }
  return error == cudaSuccess ? conv_add_up<A>(p, sums, slots, stream) : error;
}

template cudaError_t run(const ConvBackwardParams<void, float>&, const Allocator&, cudaStream_t);
template cudaError_t run(const ConvBackwardParams<void, double>&, const Allocator&, cudaStream_t);

}  // namespace xlstm::cuda
