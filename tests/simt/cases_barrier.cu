#include "buffer.h"
#include "cases.h"
#include "kernels/barriers.h"

namespace selftest {
namespace {

template <BarrierFault kFault>
Outcome run_named() {
  Buffer<float> out(kRounds * 32);
  check(xlstm::device::launch({.block = 64, .shared_bytes = sizeof(StagesShared), .name = "named_barriers"},
                              named_barriers_kernel<kFault>, out.data()));
  synchronise();
  std::vector<float> expected;
  for (int i = 0; i < kRounds * 32; ++i) expected.push_back(static_cast<float>(i / 32 * 100 + 31 - i % 32));
  return {out.read(), expected};
}

template <BarrierFault kFault>
Outcome run_flag() {
  Buffer<uint32_t> flag(std::vector<uint32_t>{0});
  Buffer<float> data(2);
  check(xlstm::device::launch({.grid = 2, .block = 32, .cooperative = true, .name = "flag"}, flag_kernel<kFault>,
                              flag.data(), data.data()));
  synchronise();
  return {data.read(), {42.f, 42.f}};
}

Outcome run_last_block() {
  Buffer<uint32_t> arrived(std::vector<uint32_t>{0});
  Buffer<float> data(5);
  check(xlstm::device::launch({.grid = 4, .block = 32, .cooperative = true, .name = "last_block"}, last_block_kernel,
                              arrived.data(), data.data()));
  synchronise();
  return {data.read(), {1.f, 2.f, 3.f, 4.f, 10.f}};
}

template <BarrierFault kFault>
Outcome run_grid() {
  constexpr int kBlocks = 8, kThreads = 64;
  Buffer<int> count(std::vector<int>{0});
  Buffer<float> out(kBlocks * kThreads);
  check(xlstm::device::launch({.grid = kBlocks, .block = kThreads, .cooperative = true, .name = "grid"},
                              grid_kernel<kFault>, count.data(), out.data()));
  synchronise();
  return {out.read(), std::vector<float>(kBlocks * kThreads, static_cast<float>(kBlocks * kThreads))};
}

template <BarrierFault kFault>
Outcome run_block() {
  Buffer<float> out(64);
  check(xlstm::device::launch({.block = 64, .shared_bytes = sizeof(StagesShared), .name = "block_barrier"},
                              block_barrier_kernel<kFault>, out.data()));
  synchronise();
  std::vector<float> expected;
  for (int i = 0; i < 64; ++i) expected.push_back(static_cast<float>((i + 32) % 64));
  return {out.read(), expected};
}

#if XLSTM_SIMT
// ---- launches that must be refused ----
Outcome refused(const xlstm::device::Launch& launch, unsigned compute_capability) {
  const simt::Options saved = simt::options();
  simt::options().compute_capability = compute_capability;
  Buffer<float> out(64);
  try {
    check(xlstm::device::launch(launch, block_barrier_kernel<BarrierFault::none>, out.data()));
  } catch (...) {
    simt::options() = saved;
    throw;
  }
  simt::options() = saved;
  return {{0.f}, {0.f}};  // not refused: a fault that was missed
}

Outcome run_large_block() {
  return refused({.block = 1056, .shared_bytes = 1024, .name = "refused"}, 90);
}
Outcome run_large_shared() {
  return refused({.block = 64, .shared_bytes = 240000, .name = "refused"}, 90);
}
Outcome run_large_cluster() {
  return refused({.grid = 32, .block = 64, .shared_bytes = 1024, .cluster = 32, .name = "refused"}, 90);
}
Outcome run_old_device() {
  return refused({.grid = 2, .block = 64, .shared_bytes = 1024, .cluster = 2, .name = "refused"}, 80);
}
#endif

}  // namespace

Cases barrier_cases() {
  using F = BarrierFault;
  Cases cases{{"barrier: named, producer and consumer", run_named<F::none>},
              {"barrier: release and acquire between blocks", run_flag<F::none>},
              {"barrier: last block sums", run_last_block},
              {"barrier: grid", run_grid<F::none>},
              {"barrier: block", run_block<F::none>}};
#if XLSTM_FAULTY_CASES
  const auto fault = [&](const char* name, Outcome (*run)(), std::vector<std::string> report,
                         Expect expect = Expect::fault) {
    cases.push_back({std::string("barrier: ") + name, run, 0, expect, report});
  };
  fault("named, no wait for the consumer", run_named<F::no_empty_barrier>, {"'named_barriers'"});
  fault("deadlock, a warp never arrives", run_named<F::missing_arrive>,
        {"'named_barriers'", "DEADLOCK", "barriers.h:", "block"});
  fault("livelock, a flag that nobody sets", run_flag<F::never_set>, {"'flag'", "LIVELOCK", "barriers.h:"});
  fault("flag without release", run_flag<F::relaxed_flag>, {"'flag'", "barriers.h:"}, Expect::fault_race);
  fault("flag without acquire", run_flag<F::volatile_poll>, {"'flag'", "barriers.h:"}, Expect::fault_race);
  fault("no grid barrier", run_grid<F::no_grid_barrier>, {"'grid'"});
  fault("threads leave before __syncthreads", run_block<F::leaves_early>, {"'block_barrier'"});
#endif
#if XLSTM_SIMT
  fault("block of 1056 threads", run_large_block, {"1056"});
  fault("240000 bytes of shared memory", run_large_shared, {"refused"});
  fault("cluster of 32", run_large_cluster, {"cluster", "32"});
  fault("cluster on compute capability 8.0", run_old_device, {"cluster"});
  cases.back().source_only = true;  // its PTX is of sm_90a alone
#endif
  return cases;
}

}  // namespace selftest
