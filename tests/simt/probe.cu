// What it costs on this device that blocks tell each other something: simt_probe prints one line of JSON, times in
// nanoseconds per round.
#include <cstdio>
#include <exception>
#include <string>

#include "buffer.h"
#include "probe.h"

namespace selftest {
namespace {

constexpr int kRounds = 20000;  // beside which a launch takes no time

// Per round of launch(rounds), the best of several runs.
template <class Launch>
double nanoseconds(Launch launch) {
  cudaEvent_t start, end;
  check(cudaEventCreate(&start));
  check(cudaEventCreate(&end));
  float best = 0;
  for (int run = 0; run < 5; ++run) {
    check(cudaEventRecord(start));
    check(launch(kRounds));
    check(cudaEventRecord(end));
    check(cudaEventSynchronize(end));
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, start, end));
    if (run == 0 || milliseconds < best) best = milliseconds;
  }
  check(cudaEventDestroy(start));
  check(cudaEventDestroy(end));
  return 1e6 * best / kRounds;
}

// Clusters that run at a time; 0 where the device refuses their size.
int active_clusters(unsigned blocks) {
  const xlstm::device::Launch l = exchange_launch(blocks, 1, kProbeThreads);
  const auto kernel = cluster_exchange_kernel<ProbeFault::none>;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = blocks, attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = l.grid, config.blockDim = l.block;
  config.dynamicSmemBytes = xlstm::device::max_shared_bytes();  // a block has a multiprocessor for itself
  config.attrs = &attribute, config.numAttrs = 1;
  int clusters = 0;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(config.dynamicSmemBytes)));
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) == cudaSuccess &&
      cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaSuccess) {
    return clusters;
  }
  cudaGetLastError();
  return 0;
}

std::string cluster_row(unsigned blocks) {
  const int active = active_clusters(blocks);
  std::string row = "{\"blocks\": " + std::to_string(blocks) + ", \"active clusters\": " + std::to_string(active);
  const auto add = [&](const std::string& name, double value) {
    row += ", \"" + name + "\": " + std::to_string(value);
  };
  if (active > 0) {
    Buffer<uint32_t> out(static_cast<size_t>(active) * blocks * kProbeThreads);
    add("round trip", nanoseconds([&](int rounds) { return cluster_ping(blocks, out.data(), rounds); }));
    for (const unsigned threads : {32u, 128u}) {  // 512 and 2048 bytes to each block
      for (const unsigned clusters : {1u, static_cast<unsigned>(active)}) {
        add("exchange of " + std::to_string(16 * threads) + " bytes" + (clusters > 1 ? " in all clusters" : ""),
            nanoseconds([&](int rounds) { return cluster_exchange(blocks, clusters, threads, out.data(), rounds); }));
        if (active == 1) break;
      }
    }
  }
  return row + "}";
}

double l2_round_trip() {
  Buffer<uint32_t> flags(2 * kLine);
  return nanoseconds([&](int rounds) {
    const cudaError_t error = cudaMemsetAsync(flags.data(), 0, flags.size() * sizeof(uint32_t));
    return error == cudaSuccess ? grid_ping(flags.data(), rounds) : error;
  });
}

void print() {
  std::string rows;
  if (xlstm::device::device_properties().compute_capability >= 90) {
    for (const unsigned blocks : {2u, 4u, 8u, 16u}) rows += (rows.empty() ? "" : ", ") + cluster_row(blocks);
  }
  std::printf("{\"L2 round trip\": %f, \"clusters\": [%s]}\n", l2_round_trip(), rows.c_str());
}

}  // namespace
}  // namespace selftest

int main() {
  try {
    selftest::print();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "simt_probe: %s\n", e.what());
    return 1;
  }
  return 0;
}
