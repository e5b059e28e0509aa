#pragma once
// A recurrence h = tanh(x + W h) over 512 units in a cluster of four blocks; every step each block gives its 128 new
// values to all four, by plain stores and a cluster barrier or by st.async and an mbarrier. W is sparse (16 per unit):
// the kernel is about the exchange.
#include "cuda/device/device.h"

namespace selftest {

enum class RecurrenceFault {
  none,
  block_barrier_only,  // __syncthreads where the whole cluster must meet
  single_buffer,       // new values overwrite those that others still read
  exits_early,         // leaves while peers still write into this block
  no_wait,             // does not wait for the peers' asynchronous stores
  expects_too_much,    // the mbarrier expects four bytes that nobody sends
};

enum class Exchange { barrier, async };

constexpr int kUnits = 512, kUnitsPerBlock = 128, kClusterBlocks = 4, kWeightsPerUnit = 16;

__host__ __device__ constexpr int recurrence_source(int unit, int k) {
  return (unit * 7 + k * 37) & (kUnits - 1);
}

struct RecurrenceShared {
  float h[2][kUnits];
  alignas(8) uint64_t full[2];
};

// W (512, 16), x and out (steps, 512)
template <Exchange kExchange, RecurrenceFault kFault>
__global__ void __launch_bounds__(kUnitsPerBlock)
    recurrence_kernel(const float* W, const float* x, float* out, int steps) {
#if XLSTM_SM90
  using namespace xlstm::device;
  using F = RecurrenceFault;
  constexpr bool kAsync = kExchange == Exchange::async;
  constexpr uint32_t kStepBytes = kUnits * sizeof(float) + (kFault == F::expects_too_much ? 4 : 0);
  XLSTM_SHARED(RecurrenceShared, s);
  const int unit = cluster_rank() * kUnitsPerBlock + threadIdx.x;
  const uint32_t full[2] = {shared_address(&s.full[0]), shared_address(&s.full[1])};
  for (int i = threadIdx.x; i < kUnits; i += kUnitsPerBlock) s.h[0][i] = s.h[1][i] = 0.f;
  if (kAsync && threadIdx.x == 0) {
    mbarrier_init(full[0], 1);
    mbarrier_init(full[1], 1);
    fence_mbarrier_init();
  }
  cluster_sync();

  for (int t = 0; t < steps; ++t) {
    const int now = t & 1, next = now ^ 1;
    if (kAsync && threadIdx.x == 0) mbarrier_arrive_expect_tx(full[next], kStepBytes);
    float z = x[size_t(t) * kUnits + unit];
    for (int k = 0; k < kWeightsPerUnit; ++k) {
      z += W[unit * kWeightsPerUnit + k] * s.h[now][recurrence_source(unit, k)];
    }
    const float h = tanhf(z);
    out[size_t(t) * kUnits + unit] = h;
    const uint32_t to = shared_address(&s.h[kFault == F::single_buffer ? now : next][unit]);
    if constexpr (kAsync) {
      __syncthreads();  // all of this block have read h[now]: peers may write it in the next step
      for (int rank = 0; rank < kClusterBlocks; ++rank) {
        st_async(map_to_rank(to, rank), h, map_to_rank(full[next], rank));
      }
      if constexpr (kFault != F::no_wait) mbarrier_wait_cluster(full[next], (t >> 1) & 1);
    } else {
      for (int rank = 0; rank < kClusterBlocks; ++rank) store_cluster(map_to_rank(to, rank), h);
      if constexpr (kFault == F::block_barrier_only) {
        __syncthreads();
      } else if (kFault != F::exits_early || t + 1 < steps) {
        cluster_sync();
      }
    }
  }
  if constexpr (kAsync) cluster_sync();  // no block may leave while peers still write into it
#endif
}

}  // namespace selftest
