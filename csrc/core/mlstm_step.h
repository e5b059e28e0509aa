#pragma once
// Parameters of the mLSTM decode step: up to 16 tokens a call, one pass over the state.
#include "core/mlstm_chunkwise.h"

namespace xlstm {

constexpr int64_t kMaxStepTokens = 16;

// A state that may lie in a larger table: strides in elements, the last dimension of C and n has stride 1.
template <class T>
struct StepState {
  T* C = nullptr;
  int64_t C_batch = 0, C_head = 0, C_row = 0;
  T* n = nullptr;
  int64_t n_batch = 0, n_head = 0;
  T* m = nullptr;
  int64_t m_batch = 0, m_head = 0;
};

template <class T>
struct MlstmStepParams {
  MlstmShape shape;  // seqlen = tokens of this call, 1 .. kMaxStepTokens
  MlstmOptions options;
  View<const T> q, k, v, i, f;
  View<T> h;
  StepState<const T> state;        // before
  StepState<T> next;               // after; may be the same memory as `state`
  const int32_t* slots = nullptr;  // (B,): row of the state that batch row b uses; null: b
};

}  // namespace xlstm
