#pragma once
// Sum of n floats per block: warp shuffles, then one word per warp through shared memory.
#include "cuda/device/device.h"

namespace selftest {

enum class ReduceFault {
  none,
  missing_barrier,      // the first warp reads partial sums without waiting for the other warps
  reads_unwritten,      // the first warp reads words that no warp has written
  reads_past_end,       // every block reads one element further
  barrier_in_one_warp,  // __syncthreads in divergent code
  divergent_shuffle,    // a full-mask shuffle that only eight lanes reach
  writes_past_end,      // the last block writes one element past the output
};

struct ReduceShared {
  float partial[32];
};

template <ReduceFault kFault>
__global__ void __launch_bounds__(256) reduce_kernel(const float* x, float* y, int n) {
  using F = ReduceFault;
  XLSTM_SHARED(ReduceShared, s);
  const int warp = threadIdx.x / 32, num_warps = blockDim.x / 32;
  const float* row = x + size_t{blockIdx.x} * n + (kFault == F::reads_past_end ? 1 : 0);

  float sum = 0.f;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += row[i];
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
  if (threadIdx.x % 32 == 0) s.partial[warp] = sum;
  if constexpr (kFault != F::missing_barrier) __syncthreads();
  if (kFault == F::barrier_in_one_warp && warp == 1) __syncthreads();

  if (warp != 0) return;
  const int words = kFault == F::reads_unwritten ? 32 : num_warps;
  sum = static_cast<int>(threadIdx.x) < words ? s.partial[threadIdx.x] : 0.f;
  if (kFault == F::divergent_shuffle && threadIdx.x < 8) sum += __shfl_xor_sync(~0u, sum, 1);
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
  if (threadIdx.x == 0) y[blockIdx.x] = sum;
  if (kFault == F::writes_past_end && blockIdx.x == gridDim.x - 1 && threadIdx.x == 0) y[gridDim.x] = sum;
}

}  // namespace selftest
