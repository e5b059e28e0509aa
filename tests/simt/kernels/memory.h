#pragma once
// Accesses of global and shared memory: right ones, and one fault each.
#include "cuda/device/device.h"

namespace selftest {

struct WarpShared {
  float values[32];
};

enum class MemoryFault {
  none,
  no_syncwarp,         // lanes exchange through shared memory as if they ran in lockstep
  unset_input,         // the input was allocated and never written
  same_word,           // all blocks write one word
  read_of_atomic,      // a plain read of what others update atomically
  lane_outside_mask,   // a shuffle from a lane that does not take part
  past_shared_memory,  // the kernel's struct is larger than the launch said
  written_constant,    // ld.global.nc of what the kernel wrote
};

// One warp: out[l] = x[31 - l], through shared memory.
template <MemoryFault kFault>
__global__ void reverse_kernel(const float* x, float* out) {
  XLSTM_SHARED(WarpShared, s);
  const int lane = threadIdx.x;
  s.values[lane] = x[lane];
  if constexpr (kFault != MemoryFault::no_syncwarp) __syncwarp();
  out[lane] = s.values[31 - lane];
}

// Counts all threads in out[0]; out[1 + block]: the block's number.
template <MemoryFault kFault>
__global__ void count_kernel(int* out) {
  atomicAdd(&out[0], 1);
  if (threadIdx.x != 0) return;
  if constexpr (kFault == MemoryFault::same_word) {
    out[1] = 0;
  } else if constexpr (kFault == MemoryFault::read_of_atomic) {
    out[1 + blockIdx.x] = out[0] >= 0 ? static_cast<int>(blockIdx.x) : -1;
  } else {
    out[1 + blockIdx.x] = blockIdx.x;
  }
}

// Lanes 0-7 and 8-31 shuffle in groups of their own; the fault makes lane 8 ask lane 0.
template <MemoryFault kFault>
__global__ void split_warp_kernel(float* out) {
  const int lane = threadIdx.x;
  constexpr int kDistance = kFault == MemoryFault::lane_outside_mask ? 8 : 1;
  const float value = static_cast<float>(lane);
  if (lane < 8) {
    out[lane] = __shfl_xor_sync(0x000000ffu, value, 1);
  } else {
    out[lane] = __shfl_xor_sync(0xffffff00u, value, kDistance);
  }
}

// out = x + 1, read back as constant memory, which only x is. One warp.
template <MemoryFault kFault>
__global__ void constant_kernel(const float* x, float* out) {
  out[threadIdx.x] = __ldg(x + threadIdx.x) + 1.f;
  if constexpr (kFault == MemoryFault::written_constant) {
    __syncthreads();
    out[threadIdx.x] = __ldg(xlstm::device::opaque(out + threadIdx.x));
  }
}

// out[0..3] = four floats at x + offset, read at once: misaligned unless offset is a multiple of four.
static __global__ void vector_load_kernel(const float* x, float* out, int offset) {
  *reinterpret_cast<float4*>(out) = *reinterpret_cast<const float4*>(x + offset);
}

// out[0] = sum of n elements of an array of four.
static __global__ void local_array_kernel(float* out, int n) {
  const float values[4] = {1, 2, 3, 4};
  float sum = 0.f;
  for (int i = 0; i < n; ++i) sum += values[i];
  out[0] = sum;
}

// Writes one float at any distance from out.
static __global__ void far_write_kernel(float* out, int distance) {
  out[distance] = 1.f;
}

#if XLSTM_SIMT
// About 1 KB of stack per level.
__attribute__((noinline)) inline float descend(int depth, float x) {
  volatile float frame[256];
  for (int i = 0; i < 256; ++i) frame[i] = x;
  return depth == 0 ? frame[0] : descend(depth - 1, frame[depth & 255] + 1.f) + frame[1];
}

static __global__ void recursive_kernel(float* out, int depth) {
  out[threadIdx.x] = descend(depth, 1.f);
}
#endif

}  // namespace selftest
