#pragma once
// Gradients of the gates, and of the stabiliser that enters a sequence, from sums that the other kernels of the
// backward pass leave behind.
#include "cuda/mlstm_chunkwise/gates.h"

namespace xlstm::cuda {

// A: float, or double for f64 data.
template <class A>
struct MlstmGateGradsParams {
  MlstmShape shape;  // head dimensions are not looked at
  bool sigmoid_gate = false;
  int chunk_size = 64;            // as of the gate vectors
  AnyView i, f;                   // (B, H, S) pre-activations
  Flags reset;                    // (B, S)
  GateVectors<A> gates;           // of i, f, reset
  const A *q_dq, *k_dk;           // (B, H, row_tiles, S): parts of the sums over features of q dq and of k dk
  int64_t row_tiles = 1;          // parts of each
  const A* kappa = nullptr;       // (B, H, S): gradient of m_t through eps (normaliser.h)
  const A* chunk_dots = nullptr;  // (B, H, slots, dot_tiles): parts of <dC, C> + <dn, n> at every chunk's end
  const A* start_dots = nullptr;  // (N, H, dot_tiles): the same of the initial state; null: 0
  int64_t dot_tiles = 1;          // parts of each
  const A* dm = nullptr;          // (N, H): gradient of the final m; null: 0
  AnyView di, df;                 // (B, H, S), written
  A* d_initial_m = nullptr;       // (N, H), written
};

template <class A>
cudaError_t mlstm_gate_grads(const MlstmGateGradsParams<A>& params, cudaStream_t stream);

}  // namespace xlstm::cuda
