#pragma once
// C (M x N, float) = A (M x K) B (K x N), both bf16 or fp16 with contiguous rows: 64 x 64 tiles, a ring of kStages
// tiles filled by cp.async, ldmatrix and mma.sync. M, N, K are multiples of 64. 128 threads, 2 x 2 warps.
#include "cuda/device/device.h"

namespace selftest {

enum class GemmFault {
  none,
  missing_barrier,    // copies of other threads may not have landed
  wait_off_by_one,    // waits for one group too few
  early_refill,       // fills the stage that other warps still read
  not_transposed,     // ldmatrix of B without .trans
  wrong_swizzle,      // B is stored without the swizzle it is read with
  row_out_of_bounds,  // rows of B shifted by one
  divergent_mma,      // half of each warp reaches another mma
  no_wait,            // no cp.async.wait_group
};

constexpr int kGemmTile = 64;

template <class T, int kStages>
struct GemmShared {
  T a[kStages][kGemmTile * kGemmTile], b[kStages][kGemmTile * kGemmTile];
};

// Index of 16-byte chunk `chunk` of a row: the chunks of eight consecutive rows lie in different banks.
__device__ __forceinline__ int swizzled(int row, int chunk) {
  return row * kGemmTile + ((chunk ^ (row & 7)) << 3);
}

template <class T, int kStages, GemmFault kFault>
__device__ __forceinline__ void gemm_load(GemmShared<T, kStages>& s, const T* A, const T* B, int N, int K, int tile) {
  using namespace xlstm::device;
  using F = GemmFault;
  const int m0 = blockIdx.y * kGemmTile, n0 = blockIdx.x * kGemmTile, k0 = tile * kGemmTile, stage = tile % kStages;
  if (k0 < K) {
    for (int i = threadIdx.x; i < 8 * kGemmTile; i += 128) {
      const int row = i / 8, chunk = i % 8, at = swizzled(row, chunk);
      const int b_at = kFault == F::wrong_swizzle ? row * kGemmTile + chunk * 8 : at;
      const int b_row = k0 + row + (kFault == F::row_out_of_bounds ? 1 : 0);
      cp_async<16>(shared_address(&s.a[stage][at]), A + size_t(m0 + row) * K + k0 + chunk * 8);
      cp_async<16>(shared_address(&s.b[stage][b_at]), B + size_t(b_row) * N + n0 + chunk * 8);
    }
  }
  cp_async_commit();
}

// One warp: 32 x 32 of the tile, fragments acc[16 rows][8 columns].
template <class T, GemmFault kFault>
__device__ __forceinline__ void gemm_multiply(const T* a, const T* b, float (&acc)[2][4][4]) {
  using namespace xlstm::device;
  using F = GemmFault;
  const int lane = threadIdx.x % 32, warp_m = threadIdx.x / 64, warp_n = threadIdx.x / 32 % 2;
  for (int k = 0; k < kGemmTile / 16; ++k) {
    uint32_t a_fragment[2][4], b_fragment[4][2];
    for (int i = 0; i < 2; ++i) {
      const int row = warp_m * 32 + i * 16 + lane % 16;
      ldmatrix(a_fragment[i], shared_address(&a[swizzled(row, 2 * k + lane / 16)]));
    }
    for (int j = 0; j < 2; ++j) {
      const int row = k * 16 + lane % 16, chunk = warp_n * 4 + j * 2 + lane / 16;
      uint32_t r[4];
      if constexpr (kFault == F::not_transposed) {
        ldmatrix(r, shared_address(&b[swizzled(row, chunk)]));
      } else {
        ldmatrix_trans(r, shared_address(&b[swizzled(row, chunk)]));
      }
      b_fragment[2 * j][0] = r[0], b_fragment[2 * j][1] = r[1];
      b_fragment[2 * j + 1][0] = r[2], b_fragment[2 * j + 1][1] = r[3];
    }
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 4; ++j) {
        if (kFault == F::divergent_mma && lane >= 16) {
          mma_m16n8k16<T>(acc[i][j], a_fragment[i], b_fragment[j]);
        } else {
          mma_m16n8k16<T>(acc[i][j], a_fragment[i], b_fragment[j]);
        }
      }
    }
  }
}

__device__ __forceinline__ void gemm_store(const float (&acc)[2][4][4], float* C, int N) {
  const int lane = threadIdx.x % 32, warp_m = threadIdx.x / 64, warp_n = threadIdx.x / 32 % 2;
  const int m0 = blockIdx.y * kGemmTile + warp_m * 32, n0 = blockIdx.x * kGemmTile + warp_n * 32;
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 4; ++j) {
      for (int half = 0; half < 2; ++half) {
        const int row = m0 + i * 16 + lane / 4 + half * 8, column = n0 + j * 8 + 2 * (lane % 4);
        *reinterpret_cast<float2*>(&C[size_t(row) * N + column]) =
            make_float2(acc[i][j][2 * half], acc[i][j][2 * half + 1]);
      }
    }
  }
}

template <class T, int kStages, GemmFault kFault>
__global__ void __launch_bounds__(128) gemm_kernel(const T* A, const T* B, float* C, int N, int K) {
  using namespace xlstm::device;
  using F = GemmFault;
  using Shared = GemmShared<T, kStages>;
  XLSTM_SHARED(Shared, s);
  constexpr int kInFlight = kFault == F::wait_off_by_one ? kStages - 1 : kStages - 2;
  for (int tile = 0; tile < kStages - 1; ++tile) gemm_load<T, kStages, kFault>(s, A, B, N, K, tile);
  float acc[2][4][4] = {};
  for (int tile = 0; tile < K / kGemmTile; ++tile) {
    if constexpr (kFault != F::no_wait) cp_async_wait<kInFlight>();
    // All threads' copies of this tile have landed, and nobody reads the stage of the tile before any more.
    if constexpr (kFault != F::missing_barrier) __syncthreads();
    if constexpr (kFault != F::early_refill) gemm_load<T, kStages, kFault>(s, A, B, N, K, tile + kStages - 1);
    gemm_multiply<T, kFault>(s.a[tile % kStages], s.b[tile % kStages], acc);
    if constexpr (kFault == F::early_refill) gemm_load<T, kStages, kFault>(s, A, B, N, K, tile + kStages);
  }
  cp_async_wait<0>();
  gemm_store(acc, C, N);
}

}  // namespace selftest
