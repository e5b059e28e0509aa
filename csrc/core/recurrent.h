#pragma once
// Parameters of the recurrent family, on every backend: one kernel, the cell (LSTM, sLSTM) is a functor. `type` says
// of which type x, R and each h are for the caller. CPU kernels take everything as float or double (T) and round h to
// that type; CUDA kernels (T = void) take x, R, h, saved and their gradients in that type, states in the type of the
// arithmetic: double for f64, else float.
#include "core/view.h"

namespace xlstm {

// Gates i, f, g, o | i, f, z, o | the same with an exponential forget gate. The ops take these numbers.
enum class Cell { lstm = 0, slstm = 1, slstm_exp = 2 };
constexpr int kCells = 3, kGates = 4, kSaved = 5, kMaxStates = 4;

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
struct RecurrentForwardParams {
  RecurrentShape shape;
  Cell cell;
  Type type;
  bool allow_tf32;                        // float32 products on tensor cores may round their operands
  GateView<const T> x;                    // (B, S, 4, H, D)
  WeightView<const T> R;                  // (4, H, D, D): raw[g] = x[g] + R[g] h + b[g]
  PointerOf<const T> b;                   // (4, H, D) contiguous, or null
  const int64_t* lengths;                 // (B,), or null
  Flags reset;                            // (B, S)
  RecurrentState<const T> initial_state;  // h of the precision of `type`
  T* h;                                   // (B, S, H, D) contiguous, written: zeros past the end of a row
  RecurrentState<T> final_state;          // written, h of the precision of `type`
  T* saved;                               // (B, S, 5, H, D) contiguous, written: zeros past the end of a row; or null
};

template <class T>
struct RecurrentBackwardParams {
  RecurrentShape shape;
  Cell cell;
  Type type;
  bool allow_tf32;
  WeightView<const T> R;
  const T* dh;     // (B, S, H, D) contiguous
  const T* saved;  // as the forward pass wrote it
  const int64_t* lengths;
  Flags reset;
  // Any pointer of the first and the last may be null: zero. Of the final state only c and n are read.
  RecurrentState<const T> initial_state, final_state, final_state_grad;
  T* dx;                                 // (B, S, 4, H, D) contiguous, written: zeros past the end of a row
  RecurrentState<T> initial_state_grad;  // written
  const T* h;                            // (B, S, H, D) contiguous, as returned
  T* dR;                                 // (4, H, D, D) contiguous, written
  T* db;                                 // (4, H, D) contiguous, written, of the type of states
};

template <class T>
struct RecurrentStepParams {
  RecurrentShape shape;  // seqlen is 1
  Cell cell;
  Type type;
  GateView<const T> x;  // (B, 1, 4, H, D)
  WeightView<const T> R;
  PointerOf<const T> b;
  RecurrentState<const T> state;
  RecurrentState<T> next;  // written, no overlap with `state`
};

}  // namespace xlstm
