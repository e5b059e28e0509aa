#pragma once
// What a load or store by TMA orders, and what it does not: 16 x 64 tiles of one block, or of a cluster of two.
#include "cuda/device/device.h"

namespace selftest {

enum class TmaFault {
  none,
  written_after_arrival,  // what the loader writes before the load, but after its arrival: the load does not tell of it
  read_before_writes,     // the stored tile is read back after a wait for the store's reads alone
  peers_mbarrier,         // the load signals the mbarrier of the other block
  peers_tile,             // the store's source is in the other block
  mbarrier_not_shown,     // no fence after mbarrier.init
  init_of_live_mbarrier,  // mbarrier.init twice
};

constexpr int kTileRows = 16, kTileColumns = 64, kTileElements = kTileRows * kTileColumns;

struct TileShared {
  alignas(1024) __nv_bfloat16 tile[kTileElements];
  alignas(8) uint64_t full;
  float note;
};

// Block `rank` of a cluster of two: its tile goes to `out` by way of shared memory, and from there to `copy`, doubled,
// by one thread. Its shared memory is overwritten as soon as the store has read it.
template <TmaFault kFault>
__global__ void __launch_bounds__(64)
    tma_rules_kernel(const __grid_constant__ CUtensorMap from, const __grid_constant__ CUtensorMap to,
                     const __nv_bfloat16* stored, float* copy, float* notes) {
#if XLSTM_SM90
  using namespace xlstm::device;
  using F = TmaFault;
  XLSTM_SHARED(TileShared, s);
  const uint32_t rank = cluster_rank(), full = shared_address(&s.full), tile = shared_address(s.tile);
  const int corner[2] = {0, static_cast<int>(rank) * kTileRows};
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    if constexpr (kFault != F::init_of_live_mbarrier) mbarrier_invalidate(full);
    mbarrier_init(full, 1);
    if constexpr (kFault != F::mbarrier_not_shown) fence_mbarrier_init();
  }
  cluster_sync();
  if (threadIdx.x == 0) {
    if constexpr (kFault != F::written_after_arrival) s.note = 7.f;
    mbarrier_arrive_expect_tx(full, sizeof s.tile);
    if constexpr (kFault == F::written_after_arrival) s.note = 7.f;
    tma_prefetch(&from, corner);
    tma_load(tile, &from, corner, kFault == F::peers_mbarrier ? map_to_rank(full, rank ^ 1) : full);
  }
  mbarrier_wait(full, 0);
  if (threadIdx.x == 32) notes[rank] = s.note;
  if (threadIdx.x == 0) {
    tma_store(&to, corner, kFault == F::peers_tile ? map_to_rank(tile, rank ^ 1) : tile);
    bulk_commit();
    bulk_wait_read<0>();
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTileElements; i += 64) s.tile[i] = __nv_bfloat16(0.f);
  if (threadIdx.x == 0) {
    if constexpr (kFault != F::read_before_writes) bulk_wait<0>();
    for (int i = 0; i < kTileElements; ++i) {
      copy[rank * kTileElements + i] = 2.f * static_cast<float>(stored[rank * kTileElements + i]);
    }
  }
  cluster_sync();
#endif
}

// Block 1 of a cluster writes into block 0, arrives there, and block 0 reads: with a wait of the scope of the cluster.
// The mbarrier has a count of 5, which comes in parts.
template <bool kBlockScope, bool kShown>
__global__ void __launch_bounds__(32) remote_arrival_kernel(float* out) {
#if XLSTM_SM90
  using namespace xlstm::device;
  XLSTM_SHARED(TileShared, s);
  const uint32_t rank = cluster_rank(), full = shared_address(&s.full);
  if (threadIdx.x == 0) {
    mbarrier_init(full, 5);
    if constexpr (kShown) fence_mbarrier_init();
    mbarrier_arrive(full, 3);
    out[3 * rank] = mbarrier_test(full, 0);
  }
  cluster_sync();
  if (threadIdx.x == 0) {
    store_cluster(map_to_rank(shared_address(&s.note), rank ^ 1), 3.f + static_cast<float>(rank));
    mbarrier_arrive_remote(map_to_rank(full, rank ^ 1), 2);
  }
  if constexpr (kBlockScope) {
    mbarrier_wait(full, 0);
  } else {
    mbarrier_wait_cluster(full, 0);
  }
  __syncwarp();  // all have seen the phase before the next one is complete
  if (threadIdx.x == 0) {
    out[3 * rank + 1] = s.note;
    mbarrier_arrive(full, 4);
    const bool early = mbarrier_test(full, 1);
    mbarrier_arrive(full);
    out[3 * rank + 2] = !early && mbarrier_test(full, 1);
  }
  cluster_sync();
#endif
}

// A tensor [batch][time][head][64] whose heads and times the map exchanges: 16 times of one head, of which the last 8
// are beyond the end. out (16, 64)
static __global__ void __launch_bounds__(64)
    tma_permuted_kernel(const __grid_constant__ CUtensorMap from, int time, int head, int batch, __nv_bfloat16* out) {
#if XLSTM_SM90
  using namespace xlstm::device;
  XLSTM_SHARED(TileShared, s);
  const uint32_t full = shared_address(&s.full);
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect_tx(full, sizeof s.tile);
    tma_load(shared_address(s.tile), &from, {0, time, head, batch}, full);
  }
  __syncthreads();
  mbarrier_wait(full, 0);
  for (int i = threadIdx.x; i < kTileElements; i += 64) {
    const int row = i / kTileColumns, column = i % kTileColumns;
    out[i] = s.tile[row * kTileColumns + (((column >> 3) ^ (row & 7)) << 3) + (column & 7)];
  }
#endif
}

}  // namespace selftest
