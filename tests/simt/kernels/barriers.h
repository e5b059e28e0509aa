#pragma once
// Barriers between warps and between blocks: right ones, and one fault each.
#include "cuda/device/device.h"

namespace selftest {

enum class BarrierFault {
  none,
  no_empty_barrier,  // the producer overwrites what the consumer still reads
  missing_arrive,    // a warp never arrives: the others wait for ever
  never_set,         // polls a flag that nobody sets
  relaxed_flag,      // publishes data by a flag without release and acquire
  volatile_poll,     // reads a released flag without acquire
  no_grid_barrier,   // reads other blocks' results without the grid's barrier
  leaves_early,      // half of the block leaves before __syncthreads
};

struct StagesShared {
  float stages[2][32];
};

constexpr int kRounds = 8;

// Warp 0 fills two stages in turn, warp 1 reads them: barriers 1, 2 say full, 3, 4 say empty. out (8, 32)
template <BarrierFault kFault>
__global__ void named_barriers_kernel(float* out) {
  using namespace xlstm::device;
  using F = BarrierFault;
  XLSTM_SHARED(StagesShared, s);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int round = 0; round < kRounds; ++round) {
    const int stage = round & 1, full = 1 + stage, empty = 3 + stage;
    if (warp == 0) {
      if (round >= 2 && kFault != F::no_empty_barrier) barrier_sync(empty, 64);
      s.stages[stage][lane] = static_cast<float>(round * 100 + lane);
      if (kFault != F::missing_arrive || round != 3) barrier_arrive(full, 64);
    } else {
      barrier_sync(full, 64);
      out[round * 32 + lane] = s.stages[stage][31 - lane];
      if (round + 2 < kRounds && kFault != F::no_empty_barrier) barrier_arrive(empty, 64);
    }
  }
}

// Block 1 publishes data[0] by a flag, block 0 polls it. Launched cooperatively: both blocks run.
template <BarrierFault kFault>
__global__ void flag_kernel(uint32_t* flag, float* data) {
  using namespace xlstm::device;
  using F = BarrierFault;
  if (threadIdx.x != 0) return;
  if (blockIdx.x == 1) {
    data[0] = 42.f;
    if constexpr (kFault == F::relaxed_flag) store_relaxed(flag, 1u);
    if constexpr (kFault == F::none || kFault == F::volatile_poll) store_release(flag, 1u);
  } else {
    if constexpr (kFault == F::relaxed_flag) {
      while (load_relaxed(flag) == 0) {
      }
    } else if constexpr (kFault == F::volatile_poll) {
      while (load_volatile(flag) == 0) {
      }
    } else {
      while (load_acquire(flag) == 0) __nanosleep(20);
    }
    data[1] = data[0];
  }
}

// Every block writes its number, the last one to arrive adds them up: data (blocks + 1).
static __global__ void last_block_kernel(uint32_t* arrived, float* data) {
  using namespace xlstm::device;
  if (threadIdx.x != 0) return;
  data[blockIdx.x] = static_cast<float>(blockIdx.x + 1);
  if (atomic_add_acq_rel(arrived, 1) != gridDim.x - 1) return;
  float sum = 0.f;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += data[i];
  data[gridDim.x] = sum;
}

// Every block counts itself, and after the grid's barrier reads the count.
template <BarrierFault kFault>
__global__ void grid_kernel(int* count, float* out) {
  using namespace xlstm::device;
  atomicAdd(count, 1);
  if constexpr (kFault != BarrierFault::no_grid_barrier) grid_sync();
  out[blockIdx.x * blockDim.x + threadIdx.x] = static_cast<float>(*count);
}

template <BarrierFault kFault>
__global__ void block_barrier_kernel(float* out) {
  XLSTM_SHARED(StagesShared, s);
  s.stages[threadIdx.x / 32][threadIdx.x % 32] = static_cast<float>(threadIdx.x);
  if (kFault == BarrierFault::leaves_early && threadIdx.x >= 32) return;
  __syncthreads();
  out[threadIdx.x] = s.stages[1 - threadIdx.x / 32][threadIdx.x % 32];
}

}  // namespace selftest
