#pragma once
// How blocks tell each other something, over and over: kernels whose time per round is what a step of a recurrence pays
// for it. They keep no time themselves; simt_probe measures them on a device.
#include "cuda/device/device.h"

namespace selftest {

constexpr int kProbeBlocks = 16, kProbeThreads = 128;  // of a cluster and of a block, at most
constexpr int kLine = 32;                              // words from one flag to the next: 128 bytes

// ---- one word there and back, first and last block of a cluster ----

struct PingShared {
  uint32_t word;
  alignas(8) uint64_t full;
};

// out: the word that each of the two received last
__global__ void __launch_bounds__(32) cluster_ping_kernel(uint32_t* out, int rounds) {
#if XLSTM_SM90
  using namespace xlstm::device;
  XLSTM_SHARED(PingShared, s);
  const uint32_t full = shared_address(&s.full), last = cluster_size() - 1, rank = cluster_rank();
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
  }
  cluster_sync();
  if (threadIdx.x == 0 && (rank == 0 || rank == last)) {
    const uint32_t peer = last - rank, to = map_to_rank(shared_address(&s.word), peer), there = map_to_rank(full, peer);
    uint32_t word = 0;
    for (int round = 0; round < rounds; ++round) {
      mbarrier_arrive_expect_tx(full, sizeof word);
      if (rank == 0) st_async(to, word + 1, there);
      mbarrier_wait_cluster(full, round & 1);
      word = s.word;
      if (rank != 0) st_async(to, word + 1, there);
    }
    out[rank == 0 ? 0 : 1] = word;
  }
  __syncwarp();
  cluster_sync();  // no block may leave while its peer still writes into it
#endif
}

// ---- 16 bytes of every thread to every block of a cluster: a step of the scan ----

enum class ProbeFault { none, one_buffer };

struct ExchangeShared {
  uint4 pieces[2][kProbeBlocks][kProbeThreads];
  alignas(8) uint64_t full[2];
};

// A thread goes on with what its neighbour in the next block has sent, plus one. out: per block and thread
template <ProbeFault kFault>
__global__ void __launch_bounds__(kProbeThreads) cluster_exchange_kernel(uint32_t* out, int rounds) {
#if XLSTM_SM90
  using namespace xlstm::device;
  XLSTM_SHARED(ExchangeShared, s);
  const uint32_t size = cluster_size(), rank = cluster_rank(), bytes = size * blockDim.x * sizeof(uint4);
  const uint32_t full[2] = {shared_address(&s.full[0]), shared_address(&s.full[1])};
  if (threadIdx.x == 0) {
    mbarrier_init(full[0], 1);
    mbarrier_init(full[1], 1);
    fence_mbarrier_init();
  }
  cluster_sync();
  uint32_t word = rank * kProbeThreads + threadIdx.x;
  for (int round = 0; round < rounds; ++round) {
    const int now = round & 1, buffer = kFault == ProbeFault::one_buffer ? 0 : now;
    if (threadIdx.x == 0) mbarrier_arrive_expect_tx(full[now], bytes);
    const uint32_t to = shared_address(&s.pieces[buffer][rank][threadIdx.x]);
    for (uint32_t peer = 0; peer < size; ++peer) {
      st_async(map_to_rank(to, peer), make_uint4(word, word, word, word), map_to_rank(full[now], peer));
    }
    mbarrier_wait_cluster(full[now], (round >> 1) & 1);
    word = s.pieces[buffer][(rank + 1) % size][threadIdx.x].w + 1;
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = word;
  cluster_sync();
#endif
}

// ---- one word there and back through L2, two blocks ----

// flags: zeros; afterwards what each of the two has said last
__global__ void __launch_bounds__(32) grid_ping_kernel(uint32_t* flags, int rounds) {
  using namespace xlstm::device;
  if (threadIdx.x != 0) return;
  uint32_t *mine = flags + blockIdx.x * kLine, *other = flags + (1 - blockIdx.x) * kLine;
  for (int round = 0; round < rounds; ++round) {
    const uint32_t word = 2 * round + 1 + blockIdx.x;
    if (blockIdx.x == 0) store_relaxed(mine, word);
    while (load_relaxed(other) != 2 * round + 2 - blockIdx.x) {
    }
    if (blockIdx.x == 1) store_relaxed(mine, word);
  }
}

}  // namespace selftest
