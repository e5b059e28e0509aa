#pragma once
// Factors of the backward pass that belong to a token: from its denominator and from dh.h.
#include "core/mlstm_chunkwise.h"
#include "cuda/types.h"

namespace xlstm::cuda {

// A: float, or double for f64 data. All of A's tensors are (B, H, S).
template <class A>
struct MlstmNormaliserParams {
  MlstmShape shape;
  MlstmOptions options;  // not: scale, chunk_size
  AnyView h, dh;         // (B, H, S, Dv); not read where the denominator has no gradient
  const A *r, *m;        // q.n of the forward pass; the stabiliser of the gate vectors
  // Written: iota = 1 / den;  rho = -iota (dh.h) sign(r), the gradient of r, 0 where |r| is not above the floor;
  // kappa = -iota eps (dh.h), the gradient of m through eps
  A *iota, *rho, *kappa;
};

template <class A>
cudaError_t mlstm_normaliser(const MlstmNormaliserParams<A>& params, cudaStream_t stream);

}  // namespace xlstm::cuda
