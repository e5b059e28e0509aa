#include "buffer.h"
#include "cases.h"
#include "kernels/gemm.h"
#include "kernels/linear_attention.h"

namespace selftest {
namespace {

constexpr int kM = 128, kN = 128, kK = 512, kStages = 3;

template <class T>
std::vector<float> reference(const std::vector<T>& a, const std::vector<T>& b) {
  std::vector<float> c(kM * kN, 0.f);
  for (int i = 0; i < kM; ++i) {
    for (int k = 0; k < kK; ++k) {
      const float x = static_cast<float>(a[i * kK + k]);
      for (int j = 0; j < kN; ++j) c[i * kN + j] += x * static_cast<float>(b[k * kN + j]);
    }
  }
  return c;
}

template <class T, GemmFault kFault>
Outcome run() {
  const std::vector<T> a = uniform<T>(kM * kK, 1), b = uniform<T>(kK * kN, 2);
  Buffer<T> a_buffer(a), b_buffer(b);
  Buffer<float> c(kM * kN);
  const xlstm::device::Launch l{.grid = dim3(kN / kGemmTile, kM / kGemmTile),
                                .block = 128,
                                .shared_bytes = sizeof(GemmShared<T, kStages>),
                                .name = "gemm"};
  check(xlstm::device::launch(l, gemm_kernel<T, kStages, kFault>, a_buffer.data(), b_buffer.data(), c.data(), kN, kK));
  synchronise();
  return {c.read(), reference(a, b)};
}

Outcome run_attention() {
  constexpr int kHeads = 2, kSeqlen = 128, kSize = kHeads * kSeqlen * 64;
  using T = __nv_bfloat16;
  const std::vector<T> q = uniform<T>(kSize, 1, 0.3f), k = uniform<T>(kSize, 2, 0.3f), v = uniform<T>(kSize, 3, 0.3f);
  Buffer<T> q_buffer(q), k_buffer(k), v_buffer(v);
  Buffer<float> o(kSize);
  const xlstm::device::Launch l{
      .grid = kHeads, .block = 128, .shared_bytes = sizeof(AttentionShared), .name = "linear attention"};
  check(xlstm::device::launch(l, linear_attention_kernel, q_buffer.data(), k_buffer.data(), v_buffer.data(), o.data(),
                              kSeqlen));
  synchronise();
  std::vector<float> expected(kSize, 0.f);
  for (int head = 0; head < kHeads; ++head) {
    const int base = head * kSeqlen * 64;
    for (int i = 0; i < kSeqlen; ++i) {
      for (int j = 0; j <= i; ++j) {
        float weight = 0.f;
        for (int d = 0; d < 64; ++d) {
          weight += static_cast<float>(q[base + i * 64 + d]) * static_cast<float>(k[base + j * 64 + d]);
        }
        for (int d = 0; d < 64; ++d) expected[base + i * 64 + d] += weight * static_cast<float>(v[base + j * 64 + d]);
      }
    }
  }
  return {o.read(), expected};
}

}  // namespace

Cases gemm_cases() {
  using F = GemmFault;
  constexpr double kTolerance = 2e-3;
  Cases cases{{"gemm: correct, bf16", run<__nv_bfloat16, F::none>, kTolerance},
              {"gemm: correct, fp16", run<__half, F::none>, kTolerance},
              {"linear attention: correct", run_attention, 2e-2}};
#if XLSTM_FAULTY_CASES
  const auto fault = [&](const char* name, Outcome (*run)(), std::vector<std::string> report = {}) {
    report.push_back("'gemm'");
    cases.push_back({std::string("gemm: ") + name, run, kTolerance, Expect::fault, report});
  };
  using T = __nv_bfloat16;
  fault("missing __syncthreads", run<T, F::missing_barrier>);
  fault("wait_group off by one", run<T, F::wait_off_by_one>, {"RACE", "gemm.h:"});
  fault("refills a stage still read", run<T, F::early_refill>, {"RACE", "gemm.h:"});
  fault("ldmatrix without .trans", run<T, F::not_transposed>);
  fault("wrong swizzle", run<T, F::wrong_swizzle>);
  fault("cp.async of a row out of bounds", run<T, F::row_out_of_bounds>, {"OUT OF BOUNDS"});
  fault("mma in divergent code", run<T, F::divergent_mma>, {"DIVERGENT", "gemm.h:"});
  fault("no cp.async.wait_group", run<T, F::no_wait>, {"RACE", "gemm.h:"});
#endif
  return cases;
}

}  // namespace selftest
