#include "buffer.h"
#include "cases.h"
#include "kernels/reduce.h"

namespace selftest {
namespace {

template <ReduceFault kFault>
Outcome run() {
  constexpr int kRows = 4, kColumns = 1000;
  const std::vector<float> x = uniform(kRows * kColumns, 1);
  Buffer<float> x_buffer(x), y(kRows);
  check(xlstm::device::launch({.grid = kRows, .block = 256, .shared_bytes = sizeof(ReduceShared), .name = "reduce"},
                              reduce_kernel<kFault>, x_buffer.data(), y.data(), kColumns));
  synchronise();
  std::vector<float> expected;
  for (int row = 0; row < kRows; ++row) {
    double sum = 0;
    for (int i = 0; i < kColumns; ++i) sum += x[row * kColumns + i];
    expected.push_back(static_cast<float>(sum));
  }
  return {y.read(), expected};
}

}  // namespace

Cases reduce_cases() {
  using F = ReduceFault;
  constexpr double kTolerance = 1e-3;
  Cases cases{{"reduce: correct", run<F::none>, kTolerance}};
#if XLSTM_FAULTY_CASES
  const auto fault = [&](const char* name, Outcome (*run)(), Expect expect = Expect::fault) {
    cases.push_back({std::string("reduce: ") + name, run, kTolerance, expect, {"'reduce'"}});
  };
  fault("missing __syncthreads", run<F::missing_barrier>);
  fault("reads unwritten shared memory", run<F::reads_unwritten>);
  fault("reads global memory past the end", run<F::reads_past_end>);
  fault("writes global memory past the end", run<F::writes_past_end>, Expect::fault_race);
  fault("barrier in one warp", run<F::barrier_in_one_warp>);
  fault("divergent full-mask shuffle", run<F::divergent_shuffle>);
#endif
  return cases;
}

}  // namespace selftest
