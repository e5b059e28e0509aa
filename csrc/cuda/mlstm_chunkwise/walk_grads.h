#pragma once
// dq, dk or dv of the chunkwise mLSTM, each in one walk: dq from the first token on, with C, dk and dv from the last
// one on, with dC. Two passes (states.h, outputs.h) compute the same where these cannot.
#include "cuda/mlstm_chunkwise/outputs.h"
#include "cuda/mlstm_chunkwise/states.h"
#include "cuda/mlstm_chunkwise/walk.h"

namespace xlstm::cuda {

struct MlstmWalkGradsParams {
  OutputKind output = OutputKind::dq;  // or dk, dv
  // The walk: dq of C, by k and v; dk and dv of dC, by q and dh. States between chunks are not stored. end: written by
  // dk alone, and so are the dots, which want forward_states.
  MlstmStatesParams<float> states;
  AnyView X, Y, Z, out;       // as in outputs.h
  AnyView factor;             // dq: q, dk: k
  float* row_sums = nullptr;  // dq, dk: (B, H, column tiles of 64, S), written: sums of factor * out
};

bool walk_grads_takes(OutputKind output, const MlstmShape& shape);  // by its head dimensions
WalkCost walk_grads_cost(OutputKind output, const MlstmShape& shape);

// Product::bf16, compute capability 9.0; X, Y, Z, out and factor are tensors that TMA can read. states.own is there.
cudaError_t mlstm_walk_grads(const MlstmWalkGradsParams& params, cudaStream_t stream);

}  // namespace xlstm::cuda
