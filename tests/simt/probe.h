#pragma once
// Launches of the probe's kernels.
#include "kernels/probe.h"

namespace selftest {

inline cudaError_t cluster_ping(unsigned blocks, uint32_t* out, int rounds) {
  const xlstm::device::Launch l{
      .grid = blocks, .block = 32, .shared_bytes = sizeof(PingShared), .cluster = blocks, .name = "cluster_ping"};
  return xlstm::device::launch(l, cluster_ping_kernel, out, rounds);
}

inline xlstm::device::Launch exchange_launch(unsigned blocks, unsigned clusters, unsigned threads) {
  return {.grid = blocks * clusters,
          .block = threads,
          .shared_bytes = sizeof(ExchangeShared),
          .cluster = blocks,
          .name = "cluster_exchange"};
}

template <ProbeFault kFault = ProbeFault::none>
cudaError_t cluster_exchange(unsigned blocks, unsigned clusters, unsigned threads, uint32_t* out, int rounds) {
  return xlstm::device::launch(exchange_launch(blocks, clusters, threads), cluster_exchange_kernel<kFault>, out,
                               rounds);
}

inline cudaError_t grid_ping(uint32_t* flags, int rounds) {
  const xlstm::device::Launch l{.grid = 2,
                                .block = 32,
                                .shared_bytes = xlstm::device::max_shared_bytes(),  // a multiprocessor for each
                                .cooperative = true,
                                .name = "grid_ping"};
  return xlstm::device::launch(l, grid_ping_kernel, flags, rounds);
}

}  // namespace selftest
