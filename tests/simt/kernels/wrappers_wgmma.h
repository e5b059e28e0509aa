#pragma once
// One wgmma: D (64 x N) = 2 A B, in two steps that accumulate, of every N, type and layout of the operands.
#include "cuda/device/device.h"

namespace selftest {

constexpr int kDepth = 16;

template <class T, int N>
struct WgmmaOnceShared {
  alignas(1024) T a[16384 / sizeof(T)], b[8 * 4096 / sizeof(T)];
};

// Byte of element (row, k) of a K-major matrix: 8 rows of 128, 64 or 32 bytes with a swizzle, or core matrices of 8
// rows of 16 bytes without one.
__host__ __device__ constexpr int k_major_byte(xlstm::device::Swizzle swizzle, int row, int k) {
  using xlstm::device::Swizzle;
  if (swizzle == Swizzle::none) return row / 8 * 256 + k / 8 * 128 + row % 8 * 16 + k % 8 * 2;
  const int row_bytes = swizzle == Swizzle::bytes_128 ? 128 : swizzle == Swizzle::bytes_64 ? 64 : 32;
  const int byte = row * row_bytes + k * 2;
  return byte ^ (byte >> 7 & (row_bytes / 16 - 1)) << 4;
}

__host__ __device__ constexpr int k_major_stride(xlstm::device::Swizzle swizzle) {
  using xlstm::device::Swizzle;
  return swizzle == Swizzle::bytes_128 ? 1024 : swizzle == Swizzle::bytes_64 ? 512 : 256;
}

// A (64, 16), B (N, 16), D (64, N). A lies kRowsOff rows further on.
template <class T, int N, bool kAInRegisters, xlstm::device::Swizzle kSwizzle, int kRowsOff>
__global__ void __launch_bounds__(128) wgmma_once_kernel(const T* A, const T* B, float* D) {
#if XLSTM_SM90A
  using namespace xlstm::device;
  using Shared = WgmmaOnceShared<T, N>;
  XLSTM_SHARED(Shared, s);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = warp * 16 + lane / 4, column = 2 * (lane % 4);
  for (int i = threadIdx.x; i < 64 * kDepth; i += 128) {
    s.a[k_major_byte(kSwizzle, i / kDepth + kRowsOff, i % kDepth) / 2] = A[i];
  }
  for (int i = threadIdx.x; i < N * kDepth; i += 128) s.b[k_major_byte(kSwizzle, i / kDepth, i % kDepth) / 2] = B[i];
  fence_proxy_async();
  __syncthreads();
  uint32_t a_fragment[4];
  for (int i = 0; i < 4; ++i) {
    a_fragment[i] = *reinterpret_cast<const uint32_t*>(&A[(row + i % 2 * 8) * kDepth + column + i / 2 * 8]);
  }
  const uint32_t first_row = shared_address(s.a) + kRowsOff * k_major_stride(kSwizzle) / 8;
  const uint64_t a = wgmma_descriptor(first_row, 128, k_major_stride(kSwizzle), kSwizzle);
  const uint64_t b = wgmma_descriptor(shared_address(s.b), 128, k_major_stride(kSwizzle), kSwizzle);
  float d[N / 2];
  for (int i = 0; i < N / 2; ++i) d[i] = 1e6f;  // the first step does not accumulate
  wgmma_operands(d);
  wgmma_operands(a_fragment);
  wgmma_fence();
  for (int step = 0; step < 2; ++step) {
    if constexpr (kAInRegisters) {
      wgmma_rs<T, N>(d, a_fragment, b, step > 0);
    } else {
      wgmma_ss<T, N>(d, a, b, step > 0);
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_operands(d);
  for (int i = 0; i < N / 2; ++i) D[(row + i / 2 % 2 * 8) * N + i / 4 * 8 + column + i % 2] = d[i];
#endif
}

}  // namespace selftest
