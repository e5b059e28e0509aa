#pragma once
// wgmma on operands in every layout of shared memory: D (64 x N) = A B with both of them contiguous along M and N, and
// with tiles that TMA writes, of every swizzle.
#include "cuda/device/device.h"
#include "kernels/wrappers_wgmma.h"

namespace selftest {

using xlstm::device::Swizzle;

// A row of the swizzle's pattern; without one, of a core matrix.
__host__ __device__ constexpr int row_bytes(Swizzle swizzle) {
  return swizzle == Swizzle::bytes_128  ? 128
         : swizzle == Swizzle::bytes_64 ? 64
         : swizzle == Swizzle::bytes_32 ? 32
                                        : 16;
}

// ---- contiguous along M and N ----
// Rows of the pattern are steps of K, 16 of them make a slab, and slabs lie side by side along M or N. The slabs are
// farther apart than they must be, so that no field of the descriptor may stand in for another.
__host__ __device__ constexpr int slab_bytes(Swizzle swizzle) {
  return (kDepth + 8) * row_bytes(swizzle);
}

__host__ __device__ constexpr int mn_major_byte(Swizzle swizzle, int mn, int k) {
  const int row = row_bytes(swizzle), byte = mn / (row / 2) * slab_bytes(swizzle) + k * row + mn % (row / 2) * 2;
  return swizzle == Swizzle::none ? byte : byte ^ (byte >> 7 & (row / 16 - 1)) << 4;
}

__device__ __forceinline__ uint64_t mn_major(uint32_t address, Swizzle swizzle) {
  const uint32_t slab = slab_bytes(swizzle), eight_steps = 8 * row_bytes(swizzle);
  return swizzle == Swizzle::none ? xlstm::device::wgmma_descriptor(address, eight_steps, slab, swizzle)
                                  : xlstm::device::wgmma_descriptor(address, slab, eight_steps, swizzle);
}

template <int N>
struct MnMajorShared {
  alignas(1024) __nv_bfloat16 a[64 / 8 * 384 / 2];
  alignas(1024) __nv_bfloat16 b[N / 8 * 384 / 2];
};

template <int N>
__device__ __forceinline__ void store_product(float* D, const float (&d)[N / 2]) {
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = 2 * (threadIdx.x % 4);
  for (int i = 0; i < N / 2; ++i) D[(row + i / 2 % 2 * 8) * N + i / 4 * 8 + column + i % 2] = d[i];
}

// A (16, 64), B (16, N), D (64, N)
template <int N, Swizzle kSwizzle>
__global__ void __launch_bounds__(128) mn_major_kernel(const __nv_bfloat16* A, const __nv_bfloat16* B, float* D) {
#if XLSTM_SM90A
  using namespace xlstm::device;
  using Shared = MnMajorShared<N>;
  XLSTM_SHARED(Shared, s);
  for (int i = threadIdx.x; i < 64 * kDepth; i += 128) s.a[mn_major_byte(kSwizzle, i % 64, i / 64) / 2] = A[i];
  for (int i = threadIdx.x; i < N * kDepth; i += 128) s.b[mn_major_byte(kSwizzle, i % N, i / N) / 2] = B[i];
  fence_proxy_async();
  __syncthreads();
  float d[N / 2] = {};
  wgmma_operands(d);
  wgmma_fence();
  wgmma_ss<__nv_bfloat16, N, true, true>(d, mn_major(shared_address(s.a), kSwizzle),
                                         mn_major(shared_address(s.b), kSwizzle), false);
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_operands(d);
  store_product<N>(D, d);
#endif
}

// ---- tiles by TMA ----
constexpr int kTmaTile = 64;

struct TmaProductShared {
  alignas(1024) __nv_bfloat16 a[kTmaTile * kTmaTile], b[kTmaTile * kTmaTile];
  alignas(8) uint64_t full;
};

// One slab after the other: boxes of 64 rows as wide as the swizzle.
template <Swizzle kSwizzle>
__device__ __forceinline__ void load_slabs(uint32_t to, const CUtensorMap* map, uint32_t full) {
  constexpr int kRow = row_bytes(kSwizzle);
  for (int slab = 0; slab < 2 * kTmaTile / kRow; ++slab) {
    xlstm::device::tma_load(to + slab * kTmaTile * kRow, map, {slab * kRow / 2, 0}, full);
  }
}

// 16 steps of K from `step` on, of 64 rows; K is the contiguous dimension, or M and N are.
template <Swizzle kSwizzle, bool kByMn>
__device__ __forceinline__ uint64_t slab_descriptor(uint32_t tile, int step) {
  constexpr uint32_t kRow = row_bytes(kSwizzle), kSlab = kTmaTile * kRow;
  constexpr bool kNone = kSwizzle == Swizzle::none;
  if constexpr (kByMn) {
    return xlstm::device::wgmma_descriptor(tile + step * kRow, kNone ? 8 * kRow : kSlab, kNone ? kSlab : 8 * kRow,
                                           kSwizzle);
  } else {
    const uint32_t byte = step * 2;
    return xlstm::device::wgmma_descriptor(tile + byte / kRow * kSlab + byte % kRow, kSlab, 8 * kRow, kSwizzle);
  }
}

// A (64, 64), B (64, 64), both K-major or both (K, M) and (K, N); D (64, 64)
template <Swizzle kSwizzle, bool kByMn>
__global__ void __launch_bounds__(128)
    tma_product_kernel(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b, float* D) {
#if XLSTM_SM90A
  using namespace xlstm::device;
  XLSTM_SHARED(TmaProductShared, s);
  const uint32_t full = shared_address(&s.full), a = shared_address(s.a), b = shared_address(s.b);
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect_tx(full, sizeof s.a + sizeof s.b);
    load_slabs<kSwizzle>(a, &map_a, full);
    load_slabs<kSwizzle>(b, &map_b, full);
  }
  __syncthreads();
  mbarrier_wait(full, 0);
  float d[kTmaTile / 2] = {};
  wgmma_operands(d);
  wgmma_fence();
  for (int k = 0; k < kTmaTile; k += kDepth) {
    wgmma_ss<__nv_bfloat16, kTmaTile, kByMn, kByMn>(d, slab_descriptor<kSwizzle, kByMn>(a, k),
                                                    slab_descriptor<kSwizzle, kByMn>(b, k));
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_operands(d);
  store_product<kTmaTile>(D, d);
#endif
}

// ---- what only a device can tell ----

// A box of 16 columns, a quarter of the swizzle's 128 bytes: does TMA pack its rows? The shared memory that it fills,
// as it lies there; what it leaves alone is zero.
constexpr int kNarrowColumns = 16, kNarrowRows = 16;

struct NarrowShared {
  alignas(1024) __nv_bfloat16 tile[kNarrowRows * 64];
  alignas(8) uint64_t full;
};

static __global__ void narrow_box_kernel(const __grid_constant__ CUtensorMap from, __nv_bfloat16* out) {
#if XLSTM_SM90
  using namespace xlstm::device;
  XLSTM_SHARED(NarrowShared, s);
  const uint32_t full = shared_address(&s.full);
  for (int i = threadIdx.x; i < kNarrowRows * 64; i += 32) s.tile[i] = __nv_bfloat16(0.f);
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect_tx(full, kNarrowRows * kNarrowColumns * 2);
    tma_load(shared_address(s.tile), &from, {0, 0}, full);
  }
  __syncthreads();
  mbarrier_wait(full, 0);
  for (int i = threadIdx.x; i < kNarrowRows * 64; i += 32) out[i] = s.tile[i];
#endif
}

}  // namespace selftest
