#pragma once
// TMA of one to five dimensions, over the edges of the tensors.
#include "cuda/device/device.h"

namespace selftest {

constexpr int kBoxFloats = 8 * 2 * 2 * 2 * 2;

struct TmaShared {
  alignas(1024) float box[kBoxFloats];
  alignas(8) uint64_t full;
};

template <int kDims>
struct Corner {
  int at[kDims];
};

// Loads the box at `load` and stores it at `store`; with multicast, block 0 of the cluster loads it for both blocks and
// each stores it into a tensor of its own.
template <int kDims, bool kMulticast>
__global__ void tma_box_kernel(const __grid_constant__ CUtensorMap from, const __grid_constant__ CUtensorMap to0,
                               const __grid_constant__ CUtensorMap to1, Corner<kDims> load, Corner<kDims> store) {
#if XLSTM_SM90
  using namespace xlstm::device;
  XLSTM_SHARED(TmaShared, s);
  constexpr uint32_t kBytes = (kDims == 1 ? 8 : kDims == 2 ? 16 : kDims == 3 ? 32 : kDims == 4 ? 64 : 128) * 4;
  const uint32_t full = shared_address(&s.full), box = shared_address(s.box), rank = cluster_rank();
  if (threadIdx.x == 0) {
    tma_prefetch_map(&from);
    mbarrier_init(full, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect_tx(full, kBytes);
  }
  if constexpr (kMulticast) {
    cluster_sync();
  } else {
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    if constexpr (kMulticast) {
      if (rank == 0) tma_load_multicast(box, &from, load.at, full, 0b11);
    } else {
      tma_load(box, &from, load.at, full);
    }
    mbarrier_wait_cluster(full, 0);
    if (rank == 0) {
      tma_store(&to0, store.at, box);
    } else {
      tma_store(&to1, store.at, box);
    }
    bulk_commit();
    bulk_wait<0>();
  }
  if constexpr (kMulticast) {
    cluster_sync();
  } else {
    __syncthreads();
  }
#endif
}

constexpr int kSwizzleRows = 16;

struct SwizzleShared {
  alignas(1024) __nv_bfloat16 tile[kSwizzleRows * 64];
  alignas(8) uint64_t full;
};

// The shared memory that a tile of 16 rows of kBytes bytes fills, as it lies there.
template <int kBytes>
__global__ void tma_swizzle_kernel(const __grid_constant__ CUtensorMap from, __nv_bfloat16* out) {
#if XLSTM_SM90
  using namespace xlstm::device;
  XLSTM_SHARED(SwizzleShared, s);
  const uint32_t full = shared_address(&s.full);
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect_tx(full, kSwizzleRows * kBytes);
    tma_load(shared_address(s.tile), &from, {0, 0}, full);
  }
  __syncthreads();
  mbarrier_wait(full, 0);
  for (int i = threadIdx.x; i < kSwizzleRows * kBytes / 2; i += 32) out[i] = s.tile[i];
#endif
}

}  // namespace selftest
