#pragma once
// The mLSTM decode step on CUDA devices.
#include "core/mlstm_step.h"
#include "cuda/types.h"

namespace xlstm::cuda {

// C is float or double as the arithmetic, or bf16; n and m are of the arithmetic type: double for f64 data, else float.
// The type of the arithmetic is that of n.
struct StepStateView {
  Any C;
  int64_t C_batch = 0, C_head = 0, C_row = 0;
  void* n = nullptr;
  int64_t n_batch = 0, n_head = 0;
  void* m = nullptr;
  int64_t m_batch = 0, m_head = 0;
};

struct MlstmStepArguments {
  MlstmShape shape;  // seqlen: 1 .. kMaxStepTokens
  MlstmOptions options;
  AnyView q, k, v, i, f;           // any types; q f64: all arithmetic in double
  AnyView h;                       // written
  StepStateView state, next;       // may be the same memory; the types of C are equal
  const int32_t* slots = nullptr;  // (B,) rows of the state, all different; a row that does not exist: h is NaN
  int64_t rows = 0;                // of the state
  void* workspace = nullptr;       // mlstm_step_workspace bytes
};

size_t mlstm_step_workspace(const MlstmShape& shape, Type data);
cudaError_t mlstm_step(const MlstmStepArguments& arguments, cudaStream_t stream);

}  // namespace xlstm::cuda
