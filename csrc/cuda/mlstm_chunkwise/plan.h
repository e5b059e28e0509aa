#pragma once
// Which kernels compute a call of the chunkwise mLSTM, and how its sequences are cut: a pure function of shape, data
// and device (docs/kernels/mlstm.md).
#include <optional>

#include "core/mlstm_chunkwise.h"
#include "cuda/mlstm_chunkwise/product.h"

namespace xlstm::cuda {

struct MlstmDevice {
  bool wgmma = false;  // it has the instructions (compute capability 9.0), and the kernels were compiled for them
  int multiprocessors = 0;
  size_t shared_bytes = 0;  // of a block, at most
};

// What is known of a call without the device. tma: which of its tensors TMA can read.
struct MlstmCall {
  MlstmShape shape;
  Product product = Product::bf16;
  int64_t chunk_size = 0;  // that was asked for; 0: none
  struct {
    bool q = false, k = false, v = false, h = false, dh = false, dq = false, dk = false, dv = false;
  } tma;
};

struct StatesPlan {
  TensorCores by;
  int segments;  // of a sequence
};

struct GradWalks {
  int with_C, with_dC;  // segments: of the walk that gives dq, and of those that give dk and dv
};

struct MlstmPlan {
  int chunk_size;
  std::optional<int> walk;              // forward: segments of a walk that gives h and states. Else states, then h
  StatesPlan states;                    // of C, where there is no walk, and where the backward pass finds nothing kept
  std::optional<GradWalks> grad_walks;  // backward. Else states of dC, then outputs
  StatesPlan state_grads;               // of dC
  TensorCores h, dq, dk, dv;            // of outputs
};

// What tests and measurements ask for; none or 0: as planned.
struct MlstmRequest {
  std::optional<bool> walk;
  std::optional<TensorCores> by;
  int segments = 0;
};

// The largest that is no longer than what was asked for (0: nothing), and no longer than the sequences need.
int mlstm_chunk_size(const MlstmShape& shape, int64_t asked);

// None where a request cannot be met.
std::optional<MlstmPlan> mlstm_plan(const MlstmCall& call, const MlstmDevice& device, const MlstmRequest& request = {});

const char* name_of(TensorCores by);

}  // namespace xlstm::cuda
