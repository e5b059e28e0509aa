#pragma once
// One TMA load that fills a 64 x 64 tile in both blocks of a cluster.
#include "cuda/device/device.h"

namespace selftest {

enum class MulticastFault {
  none,
  peer_not_initialised,  // the load may signal the peer's mbarrier before it exists
  early_look_at_peer,    // reads the peer's tile when its own is there
};

struct MulticastShared {
  alignas(1024) __nv_bfloat16 tile[64 * 64];
  alignas(8) uint64_t full;
};

// out (2, 64, 64): the tile as each block received it. pairs: the first two elements, as the other block did.
template <MulticastFault kFault>
__global__ void __launch_bounds__(64)
    multicast_kernel(const __grid_constant__ CUtensorMap map, __nv_bfloat16* out, uint32_t* pairs) {
#if XLSTM_SM90A
  using namespace xlstm::device;
  XLSTM_SHARED(MulticastShared, s);
  const uint32_t full = shared_address(&s.full), rank = cluster_rank();
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect_tx(full, sizeof s.tile);
  }
  if constexpr (kFault == MulticastFault::peer_not_initialised) {
    __syncthreads();
  } else {
    cluster_sync();
  }
  if (rank == 0 && threadIdx.x == 0) tma_load_multicast(shared_address(s.tile), &map, {0, 0}, full, 0b11);
  mbarrier_wait_cluster(full, 0);
  if constexpr (kFault != MulticastFault::early_look_at_peer) cluster_sync();
  if (threadIdx.x == 0) {
    const uint32_t at_peer = map_to_rank(shared_address(s.tile), rank ^ 1);
    pairs[rank] = load_cluster<uint32_t>(at_peer);
  }
  for (int i = threadIdx.x; i < 64 * 64; i += 64) {
    const int row = i / 64, column = i % 64;
    out[rank * 64 * 64 + i] = s.tile[row * 64 + (((column >> 3) ^ (row & 7)) << 3) + (column & 7)];
  }
  cluster_sync();
#endif
}

}  // namespace selftest
