#pragma once
// The forward pass of the chunkwise mLSTM in one walk: h of all tokens while the state goes by, which never leaves the
// chip. Two passes (states.h, outputs.h) compute the same where this one cannot.
#include "cuda/mlstm_chunkwise/states.h"

namespace xlstm::cuda {

struct MlstmWalkParams {
  MlstmStatesParams<float> states;  // forward; states and normalisers null: they are not kept
  MlstmOptions options;             // chunk_size and norm_grad are not looked at
  AnyView q, h;                     // (B, H, S, Dqk), (B, H, S, Dv); h is written
  float* r = nullptr;               // (B, H, S), written
};

// What a walk asks of a device.
struct WalkCost {
  int64_t blocks;       // of a head
  int resident;         // blocks that a multiprocessor has registers for
  size_t shared_bytes;  // of a block
};

bool walk_takes(const MlstmShape& shape);     // by its head dimensions
WalkCost walk_cost(const MlstmShape& shape);  // of one that it takes

// Product::bf16, compute capability 9.0; q, k, v and h are tensors that TMA can read.
cudaError_t mlstm_walk(const MlstmWalkParams& params, cudaStream_t stream);

}  // namespace xlstm::cuda
