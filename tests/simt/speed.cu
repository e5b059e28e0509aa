// Times of the executor, in CPU time so that a busy machine changes them less: the best of several runs.
#include "buffer.h"
#include "kernels/gemm.h"
#include "kernels/linear_attention.h"
#include "kernels/recurrence.h"
#include "kernels/reduce.h"
#include "kernels/wgmma_pipeline.h"
#include "speed.h"

#if XLSTM_SIMT
#include <algorithm>
#include <cstdio>
#include <ctime>

namespace selftest {
namespace {

using T = __nv_bfloat16;
constexpr int kRuns = 7;

template <class F>
double best_milliseconds(F run) {
  double best = 1e9;
  for (int i = 0; i < kRuns; ++i) {
    simt::options().seed = static_cast<uint64_t>(2 + i);  // in random order
    simt::stats() = {};
    const std::clock_t start = std::clock();
    run();
    best = std::min(best, 1e3 * static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC);
  }
  return best;
}

double time_gemm() {
  constexpr int M = 128, N = 128, K = 512;
  Buffer<T> a(uniform<T>(M * K, 1)), b(uniform<T>(K * N, 2));
  Buffer<float> c(M * N);
  const xlstm::device::Launch l{.grid = dim3(N / kGemmTile, M / kGemmTile),
                                .block = 128,
                                .shared_bytes = sizeof(GemmShared<T, 3>),
                                .name = "gemm"};
  return best_milliseconds(
      [&] { xlstm::device::launch(l, gemm_kernel<T, 3, GemmFault::none>, a.data(), b.data(), c.data(), N, K); });
}

double time_attention() {
  constexpr int kHeads = 2, kSeqlen = 256, kSize = kHeads * kSeqlen * 64;
  Buffer<T> q(uniform<T>(kSize, 1)), k(uniform<T>(kSize, 2)), v(uniform<T>(kSize, 3));
  Buffer<float> o(kSize);
  const xlstm::device::Launch l{
      .grid = kHeads, .block = 128, .shared_bytes = sizeof(AttentionShared), .name = "linear attention"};
  return best_milliseconds(
      [&] { xlstm::device::launch(l, linear_attention_kernel, q.data(), k.data(), v.data(), o.data(), kSeqlen); });
}

template <Exchange kExchange>
double time_recurrence() {
  constexpr int kSteps = 64;
  Buffer<float> W(uniform(kUnits * kWeightsPerUnit, 1, 0.3f)), x(uniform(kSteps * kUnits, 2)), out(kSteps * kUnits);
  const xlstm::device::Launch l{.grid = kClusterBlocks,
                                .block = kUnitsPerBlock,
                                .shared_bytes = sizeof(RecurrenceShared),
                                .cluster = kClusterBlocks,
                                .name = "recurrence"};
  return best_milliseconds([&] {
    xlstm::device::launch(l, recurrence_kernel<kExchange, RecurrenceFault::none>, W.data(), x.data(), out.data(),
                          kSteps);
  });
}

double time_wgmma() {
  constexpr int K = 256, kProducts = K / 16;
  Buffer<T> a(uniform<T>(64 * K, 1)), b(uniform<T>(64 * K, 2)), d_as_t(64 * 64);
  Buffer<float> d(64 * 64);
  const CUtensorMap map_a = matrix_map(a, 64, K, 64, 64), map_b = matrix_map(b, 64, K, 64, 64);
  const CUtensorMap map_d = matrix_map(d_as_t, 64, 64, 64, 64);
  const xlstm::device::Launch l{.block = 256, .shared_bytes = sizeof(WgmmaShared<T>), .name = "wgmma_pipeline"};
  const double all = best_milliseconds([&] {
    xlstm::device::launch(l, wgmma_pipeline_kernel<T, Operands::k_major, WgmmaFault::none>, map_a, map_b, map_d,
                          d.data(), K);
  });
  return all / kProducts;
}

double time_reduce() {
  constexpr int kRows = 256, kColumns = 1000;
  Buffer<float> x(uniform(kRows * kColumns, 1)), y(kRows);
  return best_milliseconds([&] {
    xlstm::device::launch({.grid = kRows, .block = 256, .shared_bytes = sizeof(ReduceShared), .name = "reduce"},
                          reduce_kernel<ReduceFault::none>, x.data(), y.data(), kColumns);
  });
}

}  // namespace

int measure_speed() {
  const struct {
    const char *name, *key;
    double milliseconds;
  } rows[] = {
      {"bf16 GEMM 128 x 128 x 512 (4096 mma)", "gemm", time_gemm()},
      {"linear attention forward, 2 heads, 256 steps, head dim 64", "linear_attention", time_attention()},
      {"cluster of 4, 64 steps, cluster barrier", "recurrence_barrier", time_recurrence<Exchange::barrier>()},
      {"cluster of 4, 64 steps, st.async", "recurrence_async", time_recurrence<Exchange::async>()},
      {"wgmma m64n64k16, each", "wgmma", time_wgmma()},
      {"sums of 256 blocks of 256 threads", "reduce", time_reduce()},
  };
  std::string json;
  for (const auto& row : rows) {
    std::printf("%-60s %9.3f ms\n", row.name, row.milliseconds);
    char text[80];
    std::snprintf(text, sizeof text, "%s\"%s_ms\": %.4f", json.empty() ? "" : ", ", row.key, row.milliseconds);
    json += text;
  }
  std::printf("{%s}\n", json.c_str());
  return 0;
}

}  // namespace selftest

#else

#include <cstdio>

int selftest::measure_speed() {
  std::fprintf(stderr, "--speed times the host executor\n");
  return 2;
}

#endif
