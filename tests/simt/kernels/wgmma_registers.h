#pragma once
// Registers of products in flight: D (64 x 32) = 2 D + A B, step by step, by two accumulators of 16 columns. A is
// packed in registers anew for each step.
#include "cuda/device/device.h"
#include "kernels/wrappers_wgmma.h"

namespace selftest {

enum class RegisterFault {
  none,
  repacked_in_flight,      // A of the next step while the product of this one may still read it
  scaled_after_fence,      // the accumulators are doubled between the fence and their products
  one_scaled_after_fence,  // the second of them, after the first product
  packed_after_fence,      // A
  scaled_in_flight,        // the accumulators are doubled before the wait
  one_warp_fences,         // a fence that three warps do not execute
  half_waits,              // and a wait that two do not
  waits_for_eight,         // more groups than the hardware counts
};

constexpr int kRegisterSteps = 4, kRegisterColumns = 32;

struct RegisterShared {
  alignas(1024) __nv_bfloat16 b[kRegisterSteps][kRegisterColumns * kDepth];
};

// A's fragment of a thread, of 64 x 16 floats.
__device__ __forceinline__ void pack_fragment(uint32_t (&a)[4], const float* A) {
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = 2 * (threadIdx.x % 4);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float* pair = A + (row + i % 2 * 8) * kDepth + column + i / 2 * 8;
    a[i] = xlstm::device::bits_as<uint32_t>(__floats2bfloat162_rn(pair[0], pair[1]));
  }
}

__device__ __forceinline__ void twice(float (&d)[8]) {
#pragma unroll
  for (float& x : d) x *= 2.f;
  xlstm::device::wgmma_operands(d);  // here, and nowhere else
}

__device__ __forceinline__ void stage_columns(RegisterShared& s, const __nv_bfloat16* B) {
  for (int i = threadIdx.x; i < kRegisterSteps * kRegisterColumns * kDepth; i += 128) {
    const int step = i / (kRegisterColumns * kDepth), n = i / kDepth % kRegisterColumns;
    s.b[step][k_major_byte(xlstm::device::Swizzle::none, n, i % kDepth) / 2] = B[i];
  }
  xlstm::device::fence_proxy_async();
  __syncthreads();
}

// Columns 16 half .. of a step.
__device__ __forceinline__ uint64_t columns(RegisterShared& s, int step, int half) {
  using namespace xlstm::device;
  return wgmma_descriptor(shared_address(s.b[step]) + half * 512, 128, 256, Swizzle::none);
}

__device__ __forceinline__ void store_half(float* D, const float (&d)[8], int half) {
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = 16 * half + 2 * (threadIdx.x % 4);
  for (int i = 0; i < 8; ++i) D[(row + i / 2 % 2 * 8) * kRegisterColumns + i / 4 * 8 + column + i % 2] = d[i];
}

// A (steps, 64, 16), B (steps, 32, 16), D (64, 32)
template <RegisterFault kFault>
__global__ void __launch_bounds__(128) wgmma_registers_kernel(const float* A, const __nv_bfloat16* B, float* D) {
#if XLSTM_SM90A
  using namespace xlstm::device;
  using F = RegisterFault;
  using T = __nv_bfloat16;
  XLSTM_SHARED(RegisterShared, s);
  stage_columns(s, B);
  float d[2][8] = {};
  uint32_t a[4];
  pack_fragment(a, A);
#pragma unroll 1
  for (int step = 0; step < kRegisterSteps; ++step) {
    if constexpr (kFault != F::scaled_after_fence && kFault != F::scaled_in_flight) twice(d[0]);
    if constexpr (kFault != F::scaled_after_fence && kFault != F::scaled_in_flight &&
                  kFault != F::one_scaled_after_fence)
      twice(d[1]);
    wgmma_operands(a);
    wgmma_fence();
    if (kFault == F::one_warp_fences && threadIdx.x < 32) wgmma_fence();
    if constexpr (kFault == F::scaled_after_fence) twice(d[0]), twice(d[1]);
    if constexpr (kFault == F::packed_after_fence) {
      pack_fragment(a, A + step * 64 * kDepth);
      wgmma_operands(a);
    }
    wgmma_rs<T, 16>(d[0], a, columns(s, step, 0));
    if constexpr (kFault == F::one_scaled_after_fence) twice(d[1]);
    wgmma_rs<T, 16>(d[1], a, columns(s, step, 1));
    wgmma_commit();
    if constexpr (kFault == F::scaled_in_flight) twice(d[0]), twice(d[1]);
    if (kFault == F::repacked_in_flight && step + 1 < kRegisterSteps) {
      pack_fragment(a, A + (step + 1) * 64 * kDepth);
      wgmma_operands(a);
    }
    if constexpr (kFault == F::waits_for_eight) wgmma_wait<8>();
    wgmma_wait<0>();
    if (kFault == F::half_waits && threadIdx.x < 64) wgmma_wait<0>();
    wgmma_operands(d[0]);
    wgmma_operands(d[1]);
    wgmma_operands(a);
    if (kFault != F::repacked_in_flight && kFault != F::packed_after_fence && step + 1 < kRegisterSteps) {
      pack_fragment(a, A + (step + 1) * 64 * kDepth);
    }
  }
  store_half(D, d[0], 0);
  store_half(D, d[1], 1);
#endif
}

// The same product, not doubled, with a group of products always in flight: A is packed into the registers that the
// products before those read. The accumulators are not touched between.
static __global__ void __launch_bounds__(128)
    wgmma_two_groups_kernel(const float* A, const __nv_bfloat16* B, float* D) {
#if XLSTM_SM90A
  using namespace xlstm::device;
  using T = __nv_bfloat16;
  XLSTM_SHARED(RegisterShared, s);
  stage_columns(s, B);
  float d[2][8] = {};
  uint32_t a[2][4];
  wgmma_operands(d[0]);
  wgmma_operands(d[1]);
#pragma unroll
  for (int step = 0; step < kRegisterSteps; ++step) {
    pack_fragment(a[step % 2], A + step * 64 * kDepth);
    wgmma_operands(a[step % 2]);
    wgmma_fence();
    wgmma_rs<T, 16>(d[0], a[step % 2], columns(s, step, 0));
    wgmma_rs<T, 16>(d[1], a[step % 2], columns(s, step, 1));
    wgmma_commit();
    wgmma_wait<1>();
    wgmma_operands(a[(step + 1) % 2]);
  }
  wgmma_wait<0>();
  wgmma_operands(d[0]);
  wgmma_operands(d[1]);
  store_half(D, d[0], 0);
  store_half(D, d[1], 1);
#endif
}

}  // namespace selftest
