#include "buffer.h"
#include "cases.h"
#include "kernels/wgmma_pipeline.h"

namespace selftest {
namespace {

constexpr int kTile = kWgmmaTile, kK = 256;

// The float result, then the result that TMA stored as T.
template <class T, Operands kOperands, WgmmaFault kFault>
Outcome run() {
  constexpr bool kAByMn = kOperands == Operands::mn_major;
  constexpr bool kBByMn = kAByMn || kOperands == Operands::b_mn_major;
  const std::vector<T> a = integers<T>(kTile * kK, 1), b = integers<T>(kTile * kK, 2);
  Buffer<T> a_buffer(a), b_buffer(b), d_as_t(kTile * kTile);
  Buffer<float> d(kTile * kTile);
  const auto map = [](Buffer<T>& buffer, bool by_mn) {
    return by_mn ? matrix_map(buffer, kK, kTile, kTile, kTile) : matrix_map(buffer, kTile, kK, kTile, kTile);
  };
  const xlstm::device::Launch l{
      .grid = 1, .block = 256, .shared_bytes = sizeof(WgmmaShared<T>), .name = "wgmma_pipeline"};
  check(xlstm::device::launch(l, wgmma_pipeline_kernel<T, kOperands, kFault>, map(a_buffer, kAByMn),
                              map(b_buffer, kBByMn), matrix_map(d_as_t, kTile, kTile, kTile, kTile), d.data(), kK));
  synchronise();

  std::vector<float> expected;
  for (int i = 0; i < kTile; ++i) {
    for (int j = 0; j < kTile; ++j) {
      float sum = 0.f;
      for (int k = 0; k < kK; ++k) {
        sum += static_cast<float>(a[kAByMn ? k * kTile + i : i * kK + k]) *
               static_cast<float>(b[kBByMn ? k * kTile + j : j * kK + k]);
      }
      expected.push_back(sum);
    }
  }
  for (int i = 0; i < kTile * kTile; ++i) expected.push_back(static_cast<float>(static_cast<T>(expected[i])));
  std::vector<float> got = d.read();
  for (const float value : d_as_t.read_floats()) got.push_back(value);
  return {got, expected};
}

}  // namespace

Cases wgmma_cases() {
  using F = WgmmaFault;
  using T = __nv_bfloat16;
  Cases cases{{"wgmma: correct, A and B K-major", run<T, Operands::k_major, F::none>},
              {"wgmma: correct, B MN-major", run<T, Operands::b_mn_major, F::none>},
              {"wgmma: correct, A in registers", run<T, Operands::a_in_registers, F::none>},
              {"wgmma: correct, A and B MN-major", run<T, Operands::mn_major, F::none>},
              {"wgmma: correct, fp16", run<__half, Operands::k_major, F::none>},
              {"wgmma: correct, fp16, A in registers", run<__half, Operands::a_in_registers, F::none>}};
  for (Case& c : cases) c.needs = Needs::sm_90a;
#if XLSTM_FAULTY_CASES
  const auto fault = [&](const char* name, Outcome (*run)(), Expect expect = Expect::fault,
                         std::vector<std::string> report = {}) {
    report.push_back("'wgmma_pipeline'");
    cases.push_back({std::string("wgmma: ") + name, run, 0, expect, report});
  };
  fault("no wait for the empty stage", run<T, Operands::k_major, F::no_empty_wait>);
  fault("wrong parity of the empty stage", run<T, Operands::k_major, F::wrong_empty_parity>);
  fault("expects half of the bytes", run<T, Operands::k_major, F::expects_half>);
  fault("no wait for the full stage", run<T, Operands::k_major, F::no_full_wait>);
  fault("no wgmma.fence", run<T, Operands::k_major, F::no_fence>, Expect::fault, {"wgmma.fence"});
  fault("descriptor of another swizzle", run<T, Operands::k_major, F::wrong_swizzle>);
  fault("reads accumulators before the wait", run<T, Operands::k_major, F::early_read>);
  fault("stage released early", run<T, Operands::k_major, F::early_release>, Expect::fault_race, {"RACE"});
  fault("no fence.proxy.async", run<T, Operands::k_major, F::no_proxy_fence>, Expect::fault_race,
        {"fence.proxy.async"});
  fault("no fence.proxy.async after reads", run<T, Operands::a_in_registers, F::no_fence_after_reads>,
        Expect::fault_race, {"MISSING fence.proxy.async", "after the read by"});
  fault("no barrier before the TMA store", run<T, Operands::k_major, F::no_barrier_before_store>, Expect::fault_race);
  fault("bulk store not waited for", run<T, Operands::k_major, F::store_not_waited>);
#endif
  return cases;
}

}  // namespace selftest
