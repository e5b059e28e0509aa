#pragma once
// Parameters of the chunkwise mLSTM over whole sequences, on every backend. T: the type of the data; CPU kernels take
// float or double, CUDA kernels void: data of any type. A: of arithmetic, states and r, float or double.
#include <cmath>

#include "core/view.h"

namespace xlstm {

// An op ignores what does not concern it.
struct MlstmOptions {
  bool sigmoid_gate = false;  // input gate: false exp, true sigmoid (no stabiliser)
  bool normalize = true;      // false only with the sigmoid gate: h is the bare numerator
  double scale = 1.0;         // of q
  double eps = 0.0;           // added to the denominator
  int64_t chunk_size = 0;     // tokens; 0: the kernel's choice
  bool allow_tf32 = false;    // float32 products on tensor cores may round their operands
  bool norm_grad = true;      // backward: false drops the gradient through the denominator

  // Calls f with each of them, in the order of the ops' schemas.
  template <class F>
  void each(F f) {
    f(sigmoid_gate), f(normalize), f(scale), f(eps), f(chunk_size), f(allow_tf32), f(norm_grad);
  }
};

// As a schema lists them (xlstm_cuda/functional/_mlstm.py too).
#define XLSTM_MLSTM_OPTIONS                                                                                   \
  "bool sigmoid_gate, bool normalize, float scale, float eps, int chunk_size=0, bool allow_tf32=False, bool " \
  "norm_grad=True"

// What |r| has to exceed to count in the denominator. m: the stabiliser.
template <class A>
XLSTM_HOST_DEVICE A denominator_floor(const MlstmOptions& options, A m) {
  return options.sigmoid_gate ? A{1} : std::exp(-m);
}

// Of h, without the scale of q. r: q.n times that scale.
template <class A>
XLSTM_HOST_DEVICE A denominator(const MlstmOptions& options, A r, A floor) {
  if (!options.normalize) return 1;
  const A size = r < 0 ? -r : r;
  return (size > floor ? size : floor) + static_cast<A>(options.eps);
}

struct MlstmShape {
  int64_t batch, num_heads, seqlen, head_dim_qk, head_dim_v;
  // Packed sequences: batch is 1 and sequence n covers tokens [cu_seqlens[n], cu_seqlens[n+1]). Null: one sequence a
  // row.
  const int32_t* cu_seqlens = nullptr;
  int64_t num_sequences = 0;  // = batch without cu_seqlens
};

// One state per sequence and head, contiguous: C (N, H, Dqk, Dv), n (N, H, Dqk), m (N, H). Null C: the empty state.
template <class A>
struct MlstmState {
  A *C = nullptr, *n = nullptr, *m = nullptr;
};

// No output may overlap an input.
template <class T, class A = T>
struct MlstmForwardParams {
  MlstmShape shape;
  MlstmOptions options;
  ViewOf<const T> q, k, v;  // (B, H, S, Dqk), (B, H, S, Dqk), (B, H, S, Dv), of one type
  ViewOf<const T> i, f;     // (B, H, S) pre-activations
  Flags reset;              // (B, S): the state is emptied before that token
  MlstmState<const A> initial_state;
  ViewOf<T> h;                // (B, H, S, Dv), written
  A* r = nullptr;             // (B, H, S) contiguous, written: q.n per token, saved for the backward pass
  MlstmState<A> final_state;  // written
  void* kept = nullptr;       // what the backward pass need not compute again, written; null: nothing is kept
};

template <class T, class A = T>
struct MlstmBackwardParams {
  MlstmForwardParams<T, A> forward;      // as it was, without its outputs
  ViewOf<const T> h, dh;                 // (B, H, S, Dv)
  const A* r;                            // (B, H, S) contiguous, from the forward pass
  const void* kept = nullptr;            // as the forward pass wrote it; null: nothing was kept
  MlstmState<const A> final_state;       // of the forward pass, with `kept`. m is not read
  MlstmState<const A> final_state_grad;  // any pointer may be null: zero
  ViewOf<T> dq, dk, dv, di, df;          // written, shaped as q, k, v, i, f
  MlstmState<A> initial_state_grad;      // written
};

}  // namespace xlstm
