#include "buffer.h"
#include "cases.h"
#include "probe.h"

namespace selftest {
namespace {

constexpr int kRounds = 5;

template <unsigned kBlocks>
Outcome ping() {
  Buffer<uint32_t> out(2);
  check(cluster_ping(kBlocks, out.data(), kRounds));
  synchronise();
  return {out.read_floats(), {2 * kRounds, 2 * kRounds - 1}};
}

template <unsigned kBlocks, unsigned kThreads, ProbeFault kFault = ProbeFault::none>
Outcome exchange() {
  constexpr unsigned kClusters = 2;
  Buffer<uint32_t> out(kClusters * kBlocks * kThreads);
  check(cluster_exchange<kFault>(kBlocks, kClusters, kThreads, out.data(), kRounds));
  synchronise();
  std::vector<float> expected;
  for (unsigned i = 0; i < out.size(); ++i) {
    const unsigned rank = i / kThreads % kBlocks, thread = i % kThreads;
    expected.push_back(static_cast<float>((rank + kRounds) % kBlocks * kProbeThreads + thread + kRounds));
  }
  return {out.read_floats(), expected};
}

Outcome through_l2() {
  Buffer<uint32_t> flags(std::vector<uint32_t>(2 * kLine, 0));
  check(grid_ping(flags.data(), kRounds));
  synchronise();
  const std::vector<float> all = flags.read_floats();
  return {{all[0], all[kLine]}, {2 * kRounds - 1, 2 * kRounds}};
}

}  // namespace

Cases probe_cases() {
  Cases cases{{"probe: ping in a cluster of 2", ping<2>},
              {"probe: ping in a cluster of 8", ping<8>},
              {"probe: exchange in a cluster of 2", exchange<2, 32>},
              {"probe: exchange in a cluster of 4", exchange<4, 128>},
              {"probe: exchange in a cluster of 8", exchange<8, 32>}};
  for (Case& c : cases) c.needs = Needs::sm_90;
  cases.push_back({"probe: ping through L2", through_l2});
#if XLSTM_FAULTY_CASES
  cases.push_back({"probe: one buffer for the exchange",
                   exchange<4, 32, ProbeFault::one_buffer>,
                   0,
                   Expect::fault,
                   {"'cluster_exchange'"}});
#endif
  return cases;
}

}  // namespace selftest
