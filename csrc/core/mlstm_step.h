#pragma once
// Parameters of the mLSTM decode step, on every backend: up to 16 tokens a call, one pass over the state.
#include "core/mlstm_chunkwise.h"

namespace xlstm {

constexpr int64_t kMaxStepTokens = 16;

// A state that may lie in a larger table: strides in elements, the last dimension of C and n has stride 1. n and m are
// of the type of the arithmetic; so is C, or where T is void it may be bf16.
template <class T>
struct StepState {
  PointerOf<T> C{};
  int64_t C_batch = 0, C_head = 0, C_row = 0;
  T* n = nullptr;
  int64_t n_batch = 0, n_head = 0;
  T* m = nullptr;
  int64_t m_batch = 0, m_head = 0;
};

// T: float or double, or void for data of any type; with q of f64 all arithmetic is in double, else in float.
template <class T>
struct MlstmStepParams {
  MlstmShape shape;  // seqlen = tokens of this call, 1 .. kMaxStepTokens
  MlstmOptions options;
  ViewOf<const T> q, k, v, i, f;
  ViewOf<T> h;                     // written
  StepState<const T> state;        // before
  StepState<T> next;               // after; may be the same memory as `state`. The types of C are equal
  const int32_t* slots = nullptr;  // (B,): row of the state that batch row b uses, all different; null: b
  int64_t state_rows = 0;          // of the state. CUDA: a slot that is none of them gives h = NaN
};

}  // namespace xlstm
