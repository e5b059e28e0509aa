#pragma once
// Arguments of the LSTM and the sLSTM over whole sequences on CUDA devices: the same for every way to run them
// (plan.h). T: the type of x, R and h. A: double where T is double, else float; all sums, gates and states are A.
#include "core/recurrent.h"
#include "cuda/types.h"

namespace xlstm::cuda {

struct RecurrentFwdArguments {
  RecurrentShape shape;
  Cell cell;
  Type type;                           // T
  bool allow_tf32;                     // float32 products may round their operands
  GateView<const void> x;              // (B, S, 4, H, D) of T
  WeightView<const void> R;            // (4, H, D, D) of T, `in` or `out` has stride 1
  Any b;                               // (4, H, D) contiguous of any type, or null
  const int64_t* lengths;              // (B,), or null
  Flags reset;                         // (B, S)
  RecurrentState<const void> initial;  // A; any pointer may be null: zero. h is of T's precision
  void* h;                             // (B, S, H, D) contiguous of T, written: zeros past the end of a row
  RecurrentState<void> final;          // A, written; h is of T's precision
  void* saved;                         // (B, S, 5, H, D) contiguous of T, written: zeros past the end of a row; or null
};

struct RecurrentBwdArguments {
  RecurrentShape shape;
  Cell cell;
  Type type;  // T
  bool allow_tf32;
  WeightView<const void> R;
  const void* dh;     // (B, S, H, D) contiguous of T
  const void* saved;  // as the forward wrote it
  const int64_t* lengths;
  Flags reset;
  // A; any pointer of initial and final_grad may be null: zero. Of `initial` only c and n are read, of `final` too.
  RecurrentState<const void> initial, final, final_grad;
  void* dx;                           // (B, S, 4, H, D) contiguous of T, written: zeros past the end of a row
  RecurrentState<void> initial_grad;  // A, written
};

}  // namespace xlstm::cuda
