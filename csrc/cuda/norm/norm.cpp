#include "cuda/norm/norm.h"

namespace xlstm::cuda {

cudaError_t run(const NormForwardParams<void>& p, const Allocator&, cudaStream_t stream) {
  if (p.shape.tokens() == 0) return cudaSuccess;
  if (norm_fits_registers(p)) return norm_fwd_registers(p, stream);
  return p.h.type == Type::f64 ? norm_fwd_any<double>(p, stream) : norm_fwd_any<float>(p, stream);
}

template <class A>
cudaError_t run(const NormBackwardParams<void, A>& p, const Allocator& memory, cudaStream_t stream) {
  const NormShape& s = p.forward.shape;
  A* sums = memory.get<A>(norm_runs(s) * kNormSums * s.features());
  cudaError_t error = cudaSuccess;
  bool done = s.tokens() == 0;
  if constexpr (sizeof(A) == 4) {
    if (!done && norm_fits_registers(p.forward)) {
      error = norm_bwd_registers(p, sums, stream);
      done = true;
    }
  }
  if (!done) error = norm_bwd_any<A>(p, sums, stream);
  return error == cudaSuccess ? norm_add_up<A>(p, sums, stream) : error;
}

template cudaError_t run(const NormBackwardParams<void, float>&, const Allocator&, cudaStream_t);
template cudaError_t run(const NormBackwardParams<void, double>&, const Allocator&, cudaStream_t);

}  // namespace xlstm::cuda
