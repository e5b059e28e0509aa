#include <bit>
#include <cmath>

#include "buffer.h"
#include "cases.h"
#include "kernels/multicast.h"
#include "kernels/recurrence.h"

namespace selftest {
namespace {

constexpr int kSteps = 64;

std::vector<float> reference(const std::vector<float>& W, const std::vector<float>& x) {
  std::vector<float> out(x.size()), h(kUnits, 0.f), next(kUnits);
  for (int t = 0; t < kSteps; ++t) {
    for (int unit = 0; unit < kUnits; ++unit) {
      float z = x[t * kUnits + unit];
      for (int k = 0; k < kWeightsPerUnit; ++k) z += W[unit * kWeightsPerUnit + k] * h[recurrence_source(unit, k)];
      next[unit] = out[t * kUnits + unit] = std::tanh(z);
    }
    h = next;
  }
  return out;
}

template <Exchange kExchange, RecurrenceFault kFault>
Outcome run() {
  const std::vector<float> W = uniform(kUnits * kWeightsPerUnit, 1, 0.3f), x = uniform(kSteps * kUnits, 2);
  Buffer<float> W_buffer(W), x_buffer(x), out(x.size());
  const xlstm::device::Launch l{.grid = kClusterBlocks,
                                .block = kUnitsPerBlock,
                                .shared_bytes = sizeof(RecurrenceShared),
                                .cluster = kClusterBlocks,
                                .name = "recurrence"};
  check(xlstm::device::launch(l, recurrence_kernel<kExchange, kFault>, W_buffer.data(), x_buffer.data(), out.data(),
                              kSteps));
  synchronise();
  return {out.read(), reference(W, x)};
}

template <MulticastFault kFault>
Outcome run_multicast() {
  constexpr int kTile = 64 * 64;
  Buffer<__nv_bfloat16> tile(integers<__nv_bfloat16>(kTile, 1)), out(2 * kTile);
  Buffer<uint32_t> pairs(2);
  const xlstm::device::Launch l{
      .grid = 2, .block = 64, .shared_bytes = sizeof(MulticastShared), .cluster = 2, .name = "multicast"};
  check(xlstm::device::launch(l, multicast_kernel<kFault>, matrix_map(tile, 64, 64, 64, 64), out.data(), pairs.data()));
  synchronise();
  std::vector<float> expected = integers(kTile, 1);
  expected.insert(expected.end(), expected.begin(), expected.begin() + kTile);
  std::vector<float> got = out.read_floats();
  for (const uint32_t pair : pairs.read()) {
    for (int i = 0; i < 2; ++i) {
      got.push_back(std::bit_cast<float>(pair >> 16 * i << 16));  // bfloat16: the upper half of a float
      expected.push_back(expected[i]);
    }
  }
  return {got, expected};
}

}  // namespace

Cases recurrence_cases() {
  using F = RecurrenceFault;
  constexpr double kTolerance = 1e-4;
  Cases cases{{"recurrence: correct, cluster barrier", run<Exchange::barrier, F::none>, kTolerance},
              {"recurrence: correct, st.async", run<Exchange::async, F::none>, kTolerance},
              {"multicast: correct", run_multicast<MulticastFault::none>}};
  for (Case& c : cases) c.needs = Needs::sm_90;
  cases.back().needs = Needs::sm_90a;
#if XLSTM_FAULTY_CASES
  const auto fault = [&](const char* name, Outcome (*run)(), std::vector<std::string> report = {}) {
    report.push_back("'recurrence'");
    cases.push_back({std::string("recurrence: ") + name, run, kTolerance, Expect::fault, report});
  };
  fault("__syncthreads in place of the cluster barrier", run<Exchange::barrier, F::block_barrier_only>);
  fault("single buffer", run<Exchange::barrier, F::single_buffer>);
  fault("exits while peers still write", run<Exchange::barrier, F::exits_early>);
  fault("no mbarrier wait", run<Exchange::async, F::no_wait>);
  fault("expects four bytes too many", run<Exchange::async, F::expects_too_much>, {"DEADLOCK", "mbarrier"});
  cases.push_back({"multicast: peer's mbarrier not initialised",
                   run_multicast<MulticastFault::peer_not_initialised>,
                   0,
                   Expect::fault_race,
                   {"'multicast'"}});
  cases.push_back({"multicast: the peer's tile read when the own one is there",
                   run_multicast<MulticastFault::early_look_at_peer>,
                   0,
                   Expect::fault,
                   {"'multicast'"}});
#endif
  return cases;
}

}  // namespace selftest
