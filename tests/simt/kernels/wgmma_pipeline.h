#pragma once
// D (64 x 64) = A B over K, one block: a producer warpgroup loads 64 x 64 tiles by TMA into two stages, a consumer
// warpgroup multiplies them by wgmma, writes D as float and stores it once more, as T, by TMA.
#include "cuda/device/device.h"

namespace selftest {

enum class WgmmaFault {
  none,
  no_empty_wait,            // the producer refills a stage without asking
  wrong_empty_parity,       // or asks for the wrong phase
  expects_half,             // the full barrier completes after half of the bytes
  no_full_wait,             // the consumer does not wait for the tile
  no_fence,                 // no wgmma.fence after the accumulators were set
  wrong_swizzle,            // descriptor of a 64-byte swizzle, data swizzled by 128
  early_read,               // accumulators read while the product is in flight
  early_release,            // stage released before wgmma has read it
  no_proxy_fence,           // no fence between ordinary writes and the TMA store
  no_fence_after_reads,     // nor between ordinary reads of a stage and the load that refills it
  no_barrier_before_store,  // the TMA store starts before other warps have written
  store_not_waited,         // exits while the TMA store still reads shared memory
};

// Where A and B come from, and which of their dimensions is contiguous in memory.
enum class Operands { k_major, b_mn_major, a_in_registers, mn_major };

constexpr int kWgmmaTile = 64, kWgmmaStages = 2;

template <class T>
struct WgmmaShared {
  alignas(1024) T a[kWgmmaStages][kWgmmaTile * kWgmmaTile];
  alignas(1024) T b[kWgmmaStages][kWgmmaTile * kWgmmaTile];
  alignas(1024) T d[kWgmmaTile * kWgmmaTile];
  alignas(8) uint64_t full[kWgmmaStages], empty[kWgmmaStages];
};

template <class T, Operands kOperands, WgmmaFault kFault>
__device__ __forceinline__ void wgmma_produce(WgmmaShared<T>& s, const CUtensorMap* map_a, const CUtensorMap* map_b,
                                              int tiles) {
  using namespace xlstm::device;
  using F = WgmmaFault;
  constexpr uint32_t kBytes = sizeof s.a[0] + sizeof s.b[0];
  for (int tile = 0; tile < tiles; ++tile) {
    const int stage = tile % kWgmmaStages, round = tile / kWgmmaStages;
    const uint32_t full = shared_address(&s.full[stage]), empty = shared_address(&s.empty[stage]);
    if (round > 0 && kFault != F::no_empty_wait) {
      mbarrier_wait(empty, (round & 1) ^ (kFault == F::wrong_empty_parity ? 0 : 1));
    }
    mbarrier_arrive_expect_tx(full, kFault == F::expects_half ? kBytes / 2 : kBytes);
    const int along_k[2] = {tile * kWgmmaTile, 0}, along_mn[2] = {0, tile * kWgmmaTile};
    constexpr bool kAByMn = kOperands == Operands::mn_major;
    constexpr bool kBByMn = kOperands == Operands::mn_major || kOperands == Operands::b_mn_major;
    tma_load(shared_address(s.a[stage]), map_a, kAByMn ? along_mn : along_k, full);
    tma_load(shared_address(s.b[stage]), map_b, kBByMn ? along_mn : along_k, full);
  }
}

// One 64 x 64 x 64 tile: four products. K-major steps 32 bytes inside the swizzled rows; MN-major 16 rows of 128 bytes.
// The registers of A are the caller's: they outlive the products.
template <class T, Operands kOperands, WgmmaFault kFault>
__device__ __forceinline__ void wgmma_multiply(uint32_t a, uint32_t b, float (&d)[32], uint32_t (&a_fragment)[4][4]) {
  using namespace xlstm::device;
  using F = WgmmaFault;
  constexpr Swizzle kSwizzleA = kFault == F::wrong_swizzle ? Swizzle::bytes_64 : Swizzle::bytes_128;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if constexpr (kOperands == Operands::a_in_registers) {
    for (int k = 0; k < 4; ++k) {
      const int row = warp * 16 + lane % 16, chunk = 2 * k + lane / 16;
      ldmatrix(a_fragment[k], a + row * 128 + ((chunk ^ (row & 7)) << 4));
      wgmma_operands(a_fragment[k]);
    }
    if constexpr (kFault != F::no_fence_after_reads) fence_proxy_async();  // TMA writes there next
  }
  wgmma_operands(d);
  if constexpr (kFault != F::no_fence) wgmma_fence();
  for (int k = 0; k < 4; ++k) {
    const uint64_t a_k = wgmma_descriptor(a + k * 32, 16, 1024, kSwizzleA);
    const uint64_t b_k = wgmma_descriptor(b + k * 32, 16, 1024, Swizzle::bytes_128);
    const uint64_t a_mn = wgmma_descriptor(a + k * 2048, 8192, 1024, Swizzle::bytes_128);
    const uint64_t b_mn = wgmma_descriptor(b + k * 2048, 8192, 1024, Swizzle::bytes_128);
    if constexpr (kOperands == Operands::k_major) {
      wgmma_ss<T, kWgmmaTile>(d, a_k, b_k);
    } else if constexpr (kOperands == Operands::b_mn_major) {
      wgmma_ss<T, kWgmmaTile, false, true>(d, a_k, b_mn);
    } else if constexpr (kOperands == Operands::a_in_registers) {
      wgmma_rs<T, kWgmmaTile>(d, a_fragment[k], b_k);
    } else {
      wgmma_ss<T, kWgmmaTile, true, true>(d, a_mn, b_mn);
    }
  }
  wgmma_commit();
}

template <class T, WgmmaFault kFault>
__device__ __forceinline__ void wgmma_store(WgmmaShared<T>& s, const CUtensorMap* map_d, const float (&d)[32],
                                            float* D) {
  using namespace xlstm::device;
  using F = WgmmaFault;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int i = 0; i < 16; ++i) {
    const int row = warp * 16 + lane / 4 + i % 2 * 8, column = i / 2 * 8 + 2 * (lane % 4);
    for (int e = 0; e < 2; ++e) {
      if constexpr (kFault != F::early_read) D[row * kWgmmaTile + column + e] = d[2 * i + e];
      const int swizzled_column = (((column >> 3) ^ (row & 7)) << 3) + (column & 7);
      s.d[row * kWgmmaTile + swizzled_column + e] = static_cast<T>(d[2 * i + e]);
    }
  }
  if constexpr (kFault != F::no_proxy_fence) fence_proxy_async();
  if constexpr (kFault == F::no_barrier_before_store) {
    __syncwarp();
  } else {
    barrier_sync(1, 128);
  }
  if (threadIdx.x == 0) {
    tma_store(map_d, {0, 0}, shared_address(s.d));
    bulk_commit();
    if constexpr (kFault != F::store_not_waited) bulk_wait_read<0>();
  }
}

template <class T, Operands kOperands, WgmmaFault kFault>
__global__ void __launch_bounds__(256)
    wgmma_pipeline_kernel(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b,
                          const __grid_constant__ CUtensorMap map_d, float* D, int K) {
#if XLSTM_SM90A
  using namespace xlstm::device;
  using F = WgmmaFault;
  XLSTM_SHARED(WgmmaShared<T>, s);
  const int tiles = K / kWgmmaTile;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kWgmmaStages; ++i) {
      mbarrier_init(shared_address(&s.full[i]), 1);
      mbarrier_init(shared_address(&s.empty[i]), 128);
    }
    fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x >= 128) {
    if (threadIdx.x == 128) wgmma_produce<T, kOperands, kFault>(s, &map_a, &map_b, tiles);
    return;
  }
  float d[32];
  uint32_t a_fragment[4][4];
  for (float& x : d) x = 0.f;
  for (int tile = 0; tile < tiles; ++tile) {
    const int stage = tile % kWgmmaStages, round = tile / kWgmmaStages;
    const uint32_t empty = shared_address(&s.empty[stage]);
    if constexpr (kFault != F::no_full_wait) mbarrier_wait(shared_address(&s.full[stage]), round & 1);
    wgmma_multiply<T, kOperands, kFault>(shared_address(s.a[stage]), shared_address(s.b[stage]), d, a_fragment);
    if (kFault == F::early_read && tile == tiles - 1) {
      for (int i = 0; i < 32; ++i) D[i * 128 + threadIdx.x] = d[i];
    }
    if constexpr (kFault == F::early_release) mbarrier_arrive(empty);
    wgmma_wait<0>();
    wgmma_operands(d);
    if constexpr (kFault != F::early_release) mbarrier_arrive(empty);
  }
  wgmma_store<T, kFault>(s, &map_d, d, D);
#endif
}

}  // namespace selftest
