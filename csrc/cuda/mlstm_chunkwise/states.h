#pragma once
// The states between the chunks of the mLSTM, forward: C and n that enter every chunk, from K and V; or backward: their
// gradients dC and dn that leave every chunk, from Q and dH.
#include "cuda/mlstm_chunkwise/gates.h"
#include "cuda/mlstm_chunkwise/product.h"

namespace xlstm::cuda {

constexpr int kStatesRows = 64;  // of C, of a tile

// Tiles that cover so many rows or columns of C.
inline int64_t tiles_across(int64_t size, int tile) {
  return (size + tile - 1) / tile;
}

// A: float, or double for Product::f64. E: the product's element type. Slots without tokens are not written.
template <class A>
struct MlstmStatesParams {
  MlstmShape shape;
  double scale = 1;  // of q
  Product product = Product::bf16;
  TensorCores by = TensorCores::mma;
  int chunk_size = 64;  // as of the gate vectors
  bool backward = false;
  AnyView rows, columns;  // k, v | q, dh: (B, H, S, Dqk), (B, H, S, Dv)
  GateVectors<A> gates;
  const A *iota = nullptr, *rho = nullptr;  // backward, (B, H, S): normaliser.h
  MlstmState<const A> start;  // initial state | gradient of the final state; null pointers: zero. m is not read
  MlstmState<A> end;          // written: final state | gradient of the initial state. m is not touched
  void* states = nullptr;     // (B, H, slots, Dqk, Dv) of E, written
  A* normalisers = nullptr;   // (B, H, slots, Dqk), written
  int segments = 1;           // that sequences are cut into, at most kMaxSegments
  MlstmState<A> own;          // workspace where there are several, (segments - 1, N, H, ..): what each adds. No m
  // Backward only: what the forward pass made of them, and its initial state (null: zero) and final state.
  const void* forward_states = nullptr;
  const A* forward_normalisers = nullptr;
  MlstmState<const A> initial_state, final_state;
  // Backward only, written: parts of <dC, C> + <dn, n>, StatesCost::tiles of each.
  A* chunk_dots = nullptr;  // (B, H, slots, tiles): at every chunk's end
  A* start_dots = nullptr;  // (N, H, tiles): of the initial state
};

// What a walk of the states asks of a device.
struct StatesCost {
  int64_t tiles;        // of C, each with a part of the dots
  int64_t blocks;       // that walk them
  int resident;         // blocks that a multiprocessor has registers for
  size_t shared_bytes;  // of a block
};

StatesCost states_cost(Product product, TensorCores by, const MlstmShape& shape);

// Cuts into segments. allocate(count): memory for as many A.
template <class A, class Allocate>
void cut_into_segments(MlstmStatesParams<A>& p, int segments, Allocate allocate) {
  p.segments = segments;
  if (segments == 1) return;
  const int64_t states = (segments - 1) * p.shape.num_sequences * p.shape.num_heads;
  p.own.C = allocate(states * p.shape.head_dim_qk * p.shape.head_dim_v);
  p.own.n = allocate(states * p.shape.head_dim_qk);
}

// What each segment but the last makes of an empty state: `own`, where there are several segments. The first part of
// mlstm_states.
template <class A>
cudaError_t mlstm_segment_states(const MlstmStatesParams<A>& params, cudaStream_t stream);

template <class A>
cudaError_t mlstm_states(const MlstmStatesParams<A>& params, cudaStream_t stream);

}  // namespace xlstm::cuda
