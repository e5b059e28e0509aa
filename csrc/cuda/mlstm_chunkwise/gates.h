#pragma once
// Gate vectors of the chunkwise mLSTM: everything that its other kernels need to know of i, f, resets and initial_m.
// Computed once, in double; stored so that a weight costs two subtractions, an addition and one 2^x (weights.h).
#include "cuda/mlstm_chunkwise/chunks.h"
#include "cuda/types.h"

namespace xlstm::cuda {

// The number hi + lo, hi an integer as long as A has one: differences of two large values keep their digits.
template <class A>
struct alignas(2 * sizeof(A)) Pair {
  A hi, lo;
};

// Contiguous. `b` of the formulas restarts at every boundary: a reset, or a log forget gate below kHardForget.
// The sigmoid gate has y_s = logsigmoid(i_s) - b_s, z_t = -b_t, m = 0, M = 0.
template <class A>
struct GateVectors {
  // (B, H, S)
  Pair<A>* y;      // i_s - b_s, times log2(e)
  Pair<A>* z;      // max of M and of y up to t, times log2(e); from a boundary on, of what follows it
  A* m;            // the stabiliser of the recurrence: exp(-m) is the floor of the denominator
  int32_t* start;  // token of the last boundary in the chunk, at or before t; -1: the chunk's incoming state reaches t
  // (B, H, slots); unused slots are not written
  Pair<A>* M;  // the stabiliser that enters the chunk, times log2(e)
  A* g_bar;    // exp(M - z_last); 0 where there is a boundary in the chunk
};

// A: float, or double for f64 data.
template <class A>
struct MlstmGatesParams {
  MlstmShape shape;  // head dimensions are not looked at
  bool sigmoid_gate = false;
  int chunk_size = 64;           // 64, 128 or 256
  AnyView i, f;                  // (B, H, S) pre-activations of any types
  Flags reset;                   // (B, S)
  const A* initial_m = nullptr;  // (N, H); null: 0
  GateVectors<A> out;            // written
  A* final_m = nullptr;          // (N, H), written; of a sequence without tokens its initial_m
};

template <class A>
cudaError_t mlstm_gates(const MlstmGatesParams<A>& params, cudaStream_t stream);

}  // namespace xlstm::cuda
