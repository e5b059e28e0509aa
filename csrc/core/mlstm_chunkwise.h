#pragma once
// Parameters of the chunkwise mLSTM over whole sequences. T is the compute type: float or double.
#include "core/view.h"

namespace xlstm {

struct MlstmOptions {
  bool sigmoid_gate = false;  // input gate: false exp, true sigmoid (no stabiliser)
  bool normalize = true;      // false only with the sigmoid gate: h is the bare numerator
  bool norm_grad = true;      // backward: false drops the gradient through the denominator
  double scale = 1.0;         // of q
  double eps = 0.0;           // added to the denominator
  int64_t chunk_size = 0;     // tokens; 0: the kernel's choice
};

struct MlstmShape {
  int64_t batch, num_heads, seqlen, head_dim_qk, head_dim_v;
  // Packed rows: batch is 1 and sequence n covers tokens [cu_seqlens[n], cu_seqlens[n+1]). Null: one sequence a row.
  const int32_t* cu_seqlens = nullptr;
  int64_t num_sequences = 0;  // = batch without cu_seqlens
};

// One state per sequence and head, contiguous: C (N, H, Dqk, Dv), n (N, H, Dqk), m (N, H). Null C: the empty state.
template <class T>
struct MlstmState {
  T *C = nullptr, *n = nullptr, *m = nullptr;
};

template <class T>
struct MlstmInputs {
  MlstmShape shape;
  MlstmOptions options;
  View<const T> q, k;  // (B, H, S, Dqk)
  View<const T> v;     // (B, H, S, Dv)
  View<const T> i, f;  // (B, H, S) pre-activations
  Flags reset;         // (B, S): the state is emptied before that token
  MlstmState<const T> initial;
};

// No output may overlap an input.
template <class T>
struct MlstmFwdParams {
  MlstmInputs<T> in;
  View<T> h;            // (B, H, S, Dv)
  T* r;                 // (B, H, S) contiguous: q.n per token, saved for the backward pass
  MlstmState<T> final;  // written
};

template <class T>
struct MlstmBwdParams {
  MlstmInputs<T> in;
  View<const T> h, dh;             // (B, H, S, Dv)
  const T* r;                      // (B, H, S) contiguous, from the forward pass
  MlstmState<const T> final_grad;  // any pointer may be null: zero
  View<T> dq, dk, dv;              // written, shaped as q, k, v
  View<T> di, df;                  // written (B, H, S)
  MlstmState<T> initial_grad;      // written
};

}  // namespace xlstm
