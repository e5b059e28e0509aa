#pragma once
// Sums over the threads that share a row.
#include "cuda/device/device.h"

namespace xlstm::cuda {

constexpr int kNormThreads = 128, kNormWarps = kNormThreads / 32;

// Two places, used in turn: one barrier for each sum is enough.
template <class A>
struct NormShared {
  A parts[2][kNormWarps][2];
};

// x becomes the sum over a team: a power of two of neighbouring threads, the same in all of a block. All of a block
// call it as often if a team is more than a warp.
template <int kCount, class A>
XLSTM_DEVICE void add_over_team(A (&x)[kCount], int team, NormShared<A>& s, int& place) {
  for (int step = min(team, 32) / 2; step > 0; step /= 2) {
#pragma unroll
    for (int n = 0; n < kCount; ++n) x[n] += __shfl_xor_sync(~0u, x[n], step);
  }
  if (team <= 32) return;
  const int warp = threadIdx.x / 32, warps = team / 32, first = warp / warps * warps;
  place = XLSTM_MUTANT("multihead_norm_gate: one place for the sums of warps") ? 0 : 1 - place;
  if (threadIdx.x % 32 == 0) {
#pragma unroll
    for (int n = 0; n < kCount; ++n) s.parts[place][warp][n] = x[n];
  }
  device::sync_threads(XLSTM_MUTANT("multihead_norm_gate: no barrier before the sums of warps"));
#pragma unroll
  for (int n = 0; n < kCount; ++n) {
    x[n] = 0;
    for (int w = 0; w < warps; ++w) x[n] += s.parts[place][first + w][n];
  }
}

}  // namespace xlstm::cuda
