#pragma once
// Parameters of the recurrent family: one kernel, the cell (LSTM, sLSTM) is a functor. T: float or double.
#include "core/view.h"

namespace xlstm {

// Gates i, f, g, o | i, f, z, o | the same with an exponential forget gate. The ops take these numbers.
enum class Cell { lstm = 0, slstm = 1, slstm_exp = 2 };
enum class Rounding { none, bfloat16, float16 };  // of x, R and each h, where these are narrower than T
constexpr int kGates = 4, kSaved = 5, kMaxStates = 4;

struct RecurrentShape {
  int64_t batch, seqlen, num_heads, head_dim;
  int64_t reversed_heads = 0;  // the last ones run from the end of each row to its beginning

  XLSTM_HOST_DEVICE int64_t hidden() const { return num_heads * head_dim; }
  XLSTM_HOST_DEVICE bool is_reversed(int64_t head) const { return head >= num_heads - reversed_heads; }
  // The token that a head takes as its t-th one; padding keeps its place.
  XLSTM_HOST_DEVICE int64_t token(int64_t head, int64_t t, int64_t length) const {
    return is_reversed(head) && t < length ? length - 1 - t : t;
  }
};

// (B, H, D) contiguous: h, c, n, m. LSTM: n and m are null. As an input, null: zero (the empty state).
template <class T>
struct RecurrentState {
  T *h = nullptr, *c = nullptr, *n = nullptr, *m = nullptr;
};

template <class T>
struct RecurrentFwdParams {
  RecurrentShape shape;
  Cell cell;
  Rounding rounding;
  GateView<const T> x;     // (B, S, 4, H, D)
  WeightView<const T> R;   // (4, H, D, D): raw[g] = x[g] + R[g] h + b[g]
  bool R_is_bf16;          // no weight has more digits than bfloat16
  const T* b;              // (4, H, D) contiguous, or null
  const int64_t* lengths;  // (B,), or null
  Flags reset;             // (B, S)
  RecurrentState<const T> initial;
  T* h;                     // (B, S, H, D) contiguous, written
  RecurrentState<T> final;  // written
  T* saved;                 // (B, S, 5, H, D) contiguous, written; or null
};

template <class T>
struct RecurrentBwdParams {
  RecurrentShape shape;
  Cell cell;
  WeightView<const T> R;
  bool R_is_bf16;  // no weight has more digits than bfloat16
  const T* h;      // (B, S, H, D) contiguous, as returned
  const T* dh;     // (B, S, H, D) contiguous
  const T* saved;
  const int64_t* lengths;
  Flags reset;
  RecurrentState<const T> initial, final, final_grad;  // any pointer of initial and final_grad may be null: zero
  T* dx;                                               // (B, S, 4, H, D) contiguous, written
  T* dR;                                               // (4, H, D, D) contiguous, written
  T* db;                                               // (4, H, D) contiguous, written
  RecurrentState<T> initial_grad;                      // written
};

template <class T>
struct RecurrentStepParams {
  RecurrentShape shape;  // seqlen is 1
  Cell cell;
  Rounding rounding;
  GateView<const T> x;  // (B, 1, 4, H, D)
  WeightView<const T> R;
  const T* b;
  RecurrentState<const T> state;
  RecurrentState<T> next;  // written, no overlap with `state`
};

}  // namespace xlstm
