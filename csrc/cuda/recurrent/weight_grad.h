#pragma once
// Gradients of R and b after the backward scan: products and sums over all tokens.
//   dR[g][h][out][in] = sum over b, t of dx[b][t][g][h][out] h_before[b][t][h][in]     db[g][h][out] = sum of dx
// h_before: h of the token before, in a reversed head of the one after it; before the first token initial_h; zero at a
// reset.
#include "core/recurrent.h"
#include "cuda/types.h"

namespace xlstm::cuda {

struct RecurrentWeightGradParams {
  RecurrentShape shape;
  Type type;        // T
  bool allow_tf32;  // float32 products may round their operands
  const void* dx;   // (B, S, 4, H, D) contiguous of T
  const void* h;    // (B, S, H, D) contiguous of T
  // (B, H, D) contiguous of A (double where T is double, else float) and of T's precision; null: zero
  const void* initial_h;
  const int64_t* lengths;  // (B,), or null
  Flags reset;             // (B, S)
  void* dR;                // (4, H, D, D) contiguous of T, written
  void* db;                // (4, H, D) contiguous of A, written
  int splits = 0;          // parts of the tokens that are summed by themselves, at most; 0: by the shape
};

size_t recurrent_weight_grad_workspace(const RecurrentWeightGradParams& params);  // bytes
cudaError_t recurrent_weight_grad(const RecurrentWeightGradParams& params, void* workspace, cudaStream_t stream);

}  // namespace xlstm::cuda
