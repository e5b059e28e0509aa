#include "buffer.h"
#include "cases.h"
#include "kernels/wgmma_layouts.h"

namespace selftest {
namespace {

using T = __nv_bfloat16;

// Of A and B whose element (row, k) is x[row * row_stride + k * k_stride].
std::vector<float> product(const std::vector<T>& a, const std::vector<T>& b, int n, int depth, bool by_mn) {
  std::vector<float> d;
  for (int i = 0; i < 64; ++i) {
    for (int j = 0; j < n; ++j) {
      float sum = 0.f;
      for (int k = 0; k < depth; ++k) {
        sum += static_cast<float>(a[by_mn ? k * 64 + i : i * depth + k]) *
               static_cast<float>(b[by_mn ? k * n + j : j * depth + k]);
      }
      d.push_back(sum);
    }
  }
  return d;
}

template <int N, Swizzle kSwizzle>
Outcome run_mn_major() {
  const std::vector<T> a = integers<T>(64 * kDepth, 1), b = integers<T>(N * kDepth, 2);
  Buffer<T> a_buffer(a), b_buffer(b);
  Buffer<float> d(64 * N);
  check(xlstm::device::launch({.block = 128, .shared_bytes = sizeof(MnMajorShared<N>), .name = "mn_major"},
                              mn_major_kernel<N, kSwizzle>, a_buffer.data(), b_buffer.data(), d.data()));
  synchronise();
  return {d.read(), product(a, b, N, kDepth, true)};
}

constexpr CUtensorMapSwizzle of_map(Swizzle swizzle) {
  switch (swizzle) {
    case Swizzle::none:
      return CU_TENSOR_MAP_SWIZZLE_NONE;
    case Swizzle::bytes_128:
      return CU_TENSOR_MAP_SWIZZLE_128B;
    case Swizzle::bytes_64:
      return CU_TENSOR_MAP_SWIZZLE_64B;
    case Swizzle::bytes_32:
      return CU_TENSOR_MAP_SWIZZLE_32B;
  }
  return CU_TENSOR_MAP_SWIZZLE_NONE;
}

template <Swizzle kSwizzle, bool kByMn>
Outcome run_tma() {
  const std::vector<T> a = integers<T>(kTmaTile * kTmaTile, 1), b = integers<T>(kTmaTile * kTmaTile, 2);
  Buffer<T> a_buffer(a), b_buffer(b);
  Buffer<float> d(kTmaTile * kTmaTile);
  const auto map = [](Buffer<T>& buffer) {
    return matrix_map(buffer, kTmaTile, kTmaTile, kTmaTile, row_bytes(kSwizzle) / 2, of_map(kSwizzle));
  };
  check(xlstm::device::launch({.block = 128, .shared_bytes = sizeof(TmaProductShared), .name = "tma_product"},
                              tma_product_kernel<kSwizzle, kByMn>, map(a_buffer), map(b_buffer), d.data()));
  synchronise();
  return {d.read(), product(a, b, kTmaTile, kTmaTile, kByMn)};
}

Outcome run_narrow_box() {
  const std::vector<T> x = integers<T>(kNarrowRows * kNarrowColumns, 1);
  Buffer<T> from(x), out(kNarrowRows * 64);
  check(xlstm::device::launch({.block = 32, .shared_bytes = sizeof(NarrowShared), .name = "narrow_box"},
                              narrow_box_kernel,
                              matrix_map(from, kNarrowRows, kNarrowColumns, kNarrowRows, kNarrowColumns), out.data()));
  synchronise();
  std::vector<float> expected(kNarrowRows * 64, 0.f);
  for (int i = 0; i < kNarrowRows * kNarrowColumns; ++i) {
    const int byte = 2 * i;
    expected[(byte ^ (byte >> 7 & 7) << 4) / 2] = static_cast<float>(x[i]);
  }
  return {out.read_floats(), expected};
}

}  // namespace

Cases wgmma_layout_cases() {
  using S = Swizzle;
  Cases cases{{"layout: MN-major, 128 bytes, N 128", run_mn_major<128, S::bytes_128>},
              {"layout: MN-major, 128 bytes, N 192", run_mn_major<192, S::bytes_128>},
              {"layout: MN-major, 64 bytes, N 96", run_mn_major<96, S::bytes_64>},
              {"layout: MN-major, 32 bytes, N 48", run_mn_major<48, S::bytes_32>},
              {"layout: MN-major, no swizzle, N 32", run_mn_major<32, S::none>},
              {"layout: K-major by TMA, 128 bytes", run_tma<S::bytes_128, false>},
              {"layout: K-major by TMA, 64 bytes", run_tma<S::bytes_64, false>},
              {"layout: K-major by TMA, 32 bytes", run_tma<S::bytes_32, false>},
              {"layout: K-major by TMA, no swizzle", run_tma<S::none, false>},
              {"layout: MN-major by TMA, 128 bytes", run_tma<S::bytes_128, true>},
              {"layout: MN-major by TMA, 64 bytes", run_tma<S::bytes_64, true>},
              {"layout: MN-major by TMA, 32 bytes", run_tma<S::bytes_32, true>},
              {"layout: MN-major by TMA, no swizzle", run_tma<S::none, true>}};
  cases.push_back({"asked: TMA packs rows that are narrower than the swizzle",
                   run_narrow_box,
                   0,
                   Expect::asked,
                   {"rows of 32 bytes", "wgmma_layouts.h:"}});
  for (Case& c : cases) c.needs = Needs::sm_90a;
  return cases;
}

}  // namespace selftest
