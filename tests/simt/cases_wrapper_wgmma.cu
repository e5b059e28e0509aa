#include "buffer.h"
#include "cases.h"
#include "kernels/wrappers_wgmma.h"

namespace selftest {
namespace {

using xlstm::device::Swizzle;

template <class T, int N, bool kAInRegisters, Swizzle kSwizzle = Swizzle::none, int kRowsOff = 0>
Outcome run() {
  const std::vector<T> a = integers<T>(64 * kDepth, 1), b = integers<T>(N * kDepth, 2);
  Buffer<T> a_buffer(a), b_buffer(b);
  Buffer<float> d(64 * N);
  check(xlstm::device::launch({.block = 128, .shared_bytes = sizeof(WgmmaOnceShared<T, N>), .name = "wgmma_once"},
                              wgmma_once_kernel<T, N, kAInRegisters, kSwizzle, kRowsOff>, a_buffer.data(),
                              b_buffer.data(), d.data()));
  synchronise();
  std::vector<float> expected;
  for (int i = 0; i < 64; ++i) {
    for (int j = 0; j < N; ++j) {
      float sum = 0.f;
      for (int k = 0; k < kDepth; ++k) {
        sum += static_cast<float>(a[i * kDepth + k]) * static_cast<float>(b[j * kDepth + k]);
      }
      expected.push_back(2.f * sum);
    }
  }
  return {d.read(), expected};
}

template <int N>
void add_size(Cases& cases) {
  const std::string n = "n" + std::to_string(N);
  cases.push_back({"wrapper: wgmma " + n + " bf16", run<__nv_bfloat16, N, false>});
  cases.push_back({"wrapper: wgmma " + n + " bf16, A in registers", run<__nv_bfloat16, N, true>});
  cases.push_back({"wrapper: wgmma " + n + " fp16", run<__half, N, false>});
  cases.push_back({"wrapper: wgmma " + n + " fp16, A in registers", run<__half, N, true>});
}

}  // namespace

Cases wrapper_wgmma_cases() {
  Cases cases;
  add_size<8>(cases);
  add_size<16>(cases);
  add_size<32>(cases);
  add_size<48>(cases);
  add_size<64>(cases);
  add_size<96>(cases);
  add_size<128>(cases);
  add_size<192>(cases);
  add_size<256>(cases);
  cases.push_back({"wrapper: wgmma swizzle of 32 bytes", run<__nv_bfloat16, 64, false, Swizzle::bytes_32>});
  cases.push_back({"wrapper: wgmma swizzle of 64 bytes", run<__nv_bfloat16, 64, false, Swizzle::bytes_64>});
  cases.push_back({"wrapper: wgmma swizzle of 128 bytes", run<__nv_bfloat16, 64, false, Swizzle::bytes_128>});
  cases.push_back({"asked: wgmma starts inside the pattern of a swizzle",
                   run<__nv_bfloat16, 64, false, Swizzle::bytes_128, 4>,
                   0,
                   Expect::asked,
                   {"no base offset", "wrappers_wgmma.h:"}});
  for (Case& c : cases) c.needs = Needs::sm_90a;
  return cases;
}

}  // namespace selftest
