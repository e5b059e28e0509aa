#include "buffer.h"
#include "cases.h"
#include "kernels/tma_rules.h"

namespace selftest {
namespace {

using T = __nv_bfloat16;

template <TmaFault kFault>
Outcome run() {
  const std::vector<T> x = uniform<T>(2 * kTileElements, 1);
  Buffer<T> from(x), to(x.size());
  Buffer<float> copy(x.size()), notes(2);
  const xlstm::device::Launch l{
      .grid = 2, .block = 64, .shared_bytes = sizeof(TileShared), .cluster = 2, .name = "tma_rules"};
  const auto map = [](Buffer<T>& buffer) {
    return matrix_map(buffer, 2 * kTileRows, kTileColumns, kTileRows, kTileColumns);
  };
  check(xlstm::device::launch(l, tma_rules_kernel<kFault>, map(from), map(to), to.data(), copy.data(), notes.data()));
  synchronise();
  std::vector<float> got = copy.read(), expected;
  for (const T value : x) expected.push_back(2.f * static_cast<float>(value));
  for (const float note : notes.read()) got.push_back(note), expected.push_back(7.f);
  for (const float value : to.read_floats()) got.push_back(value);
  for (const T value : x) expected.push_back(static_cast<float>(value));
  return {got, expected};
}

template <bool kBlockScope, bool kShown>
Outcome run_remote_arrival() {
  Buffer<float> out(6);
  check(xlstm::device::launch(
      {.grid = 2, .block = 32, .shared_bytes = sizeof(TileShared), .cluster = 2, .name = "remote_arrival"},
      remote_arrival_kernel<kBlockScope, kShown>, out.data()));
  synchronise();
  return {out.read(), {0.f, 4.f, 1.f, 0.f, 3.f, 1.f}};
}

Outcome run_permuted() {
  constexpr int kBatch = 2, kTime = 32, kHeads = 3, time = 24, head = 1, batch = 1;
  const std::vector<T> x = uniform<T>(kBatch * kTime * kHeads * kTileColumns, 1);
  Buffer<T> from(x), out(kTileElements);
  const xlstm::device::TensorMapShape<4> shape{{kTileColumns, kTime, kHeads, kBatch},
                                               {kHeads * kTileColumns, kTileColumns, kTime * kHeads * kTileColumns},
                                               {kTileColumns, kTileRows, 1, 1}};
  CUtensorMap map;
  if (xlstm::device::make_tensor_map(&map, from.data(), shape, CU_TENSOR_MAP_SWIZZLE_128B) != CUDA_SUCCESS) {
    throw std::runtime_error("no tensor map");
  }
  check(xlstm::device::launch({.block = 64, .shared_bytes = sizeof(TileShared), .name = "tma_permuted"},
                              tma_permuted_kernel, map, time, head, batch, out.data()));
  synchronise();
  std::vector<float> expected;
  for (int i = 0; i < kTileElements; ++i) {
    const int t = time + i / kTileColumns, column = i % kTileColumns;
    expected.push_back(t < kTime ? static_cast<float>(x[((batch * kTime + t) * kHeads + head) * kTileColumns + column])
                                 : 0.f);
  }
  return {out.read_floats(), expected};
}

}  // namespace

Cases tma_rule_cases() {
  using F = TmaFault;
  Cases cases{{"tma: correct, stored and read back", run<F::none>},
              {"tma: correct, arrivals of another block", run_remote_arrival<false, true>},
              {"tma: correct, permuted map of 4 dimensions", run_permuted}};
  for (Case& c : cases) c.needs = Needs::sm_90;
#if XLSTM_FAULTY_CASES
  const auto fault = [&](const char* name, Outcome (*run)(), Expect expect, std::vector<std::string> report) {
    cases.push_back({std::string("tma: ") + name, run, 0, expect, std::move(report)});
  };
  const std::string place = "tma_rules.h:";
  fault("written after the arrival", run<F::written_after_arrival>, Expect::fault_race, {"RACE", place});
  fault("read back before the writes", run<F::read_before_writes>, Expect::fault, {"'tma_rules'"});
  fault("mbarrier of the other block", run<F::peers_mbarrier>, Expect::refused,
        {"in another block than the data", place});
  fault("store from the other block", run<F::peers_tile>, Expect::refused, {"another block's shared memory", place});
  fault("mbarrier without a fence", run<F::mbarrier_not_shown>, Expect::refused, {"no fence.mbarrier_init", place});
  fault("init of a live mbarrier", run<F::init_of_live_mbarrier>, Expect::refused, {"live mbarrier", place});
  fault("remote arrivals without a fence", run_remote_arrival<false, false>, Expect::refused,
        {"no fence.mbarrier_init", place});
  fault("remote arrivals awaited in the block's scope", run_remote_arrival<true, true>, Expect::fault_race,
        {"RACE", place});
#endif
  return cases;
}

}  // namespace selftest
