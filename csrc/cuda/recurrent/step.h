#pragma once
// One token of the LSTM and the sLSTM on CUDA devices.
#include "core/recurrent.h"
#include "cuda/types.h"

namespace xlstm::cuda {

struct RecurrentStepArguments {
  RecurrentShape shape;  // seqlen is 1
  Cell cell;
  Type type;                 // T, of x, R and the rounded h; f64: all arithmetic in double, else in float
  GateView<const void> x;    // (B, 1, 4, H, D)
  WeightView<const void> R;  // `in` or `out` has stride 1
  Any b;                     // (4, H, D) contiguous of any type, or null
  // float or double as the arithmetic; no overlap. The h before is rounded to T here, the h after is of T's precision.
  RecurrentState<const void> state;
  RecurrentState<void> next;  // written
};

cudaError_t recurrent_step(const RecurrentStepArguments& arguments, cudaStream_t stream);

}  // namespace xlstm::cuda
