#include <cmath>

#include "buffer.h"
#include "cases.h"
#include "kernels/wrappers_warp.h"

namespace selftest {
namespace {

template <MmaType kType>
Outcome run_mma() {
  using T = typename MmaTraits<kType>::Element;
  constexpr int K = MmaTraits<kType>::kDepth;
  const std::vector<T> a = integers<T>(16 * K, 1), b = integers<T>(K * 8, 2);
  const std::vector<float> c = integers(16 * 8, 3);
  // tf32 ignores the low 13 bits: noise in them must not change the result.
  std::vector<T> noisy_a = a, noisy_b = b;
  if constexpr (kType == MmaType::tf32) {
    Random random(4);
    for (std::vector<T>* values : {&noisy_a, &noisy_b}) {
      for (T& value : *values) {
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        bits |= random.bits() & 0x1fff;
        std::memcpy(&value, &bits, 4);
      }
    }
  }
  Buffer<T> a_buffer(noisy_a), b_buffer(noisy_b);
  Buffer<float> d(c);
  check(xlstm::device::launch({.block = 32, .name = "mma"}, mma_kernel<kType>, a_buffer.data(), b_buffer.data(),
                              d.data()));
  synchronise();
  std::vector<float> expected = c;
  for (int i = 0; i < 16 * 8; ++i) {
    for (int k = 0; k < K; ++k)
      expected[i] += static_cast<float>(a[i / 8 * K + k]) * static_cast<float>(b[k * 8 + i % 8]);
  }
  return {d.read(), expected};
}

std::vector<float> floats(const std::vector<double>& values) {
  return std::vector<float>(values.begin(), values.end());
}

Outcome run_mma_f64() {
  const std::vector<double> a = integers<double>(8 * 4, 1), b = integers<double>(4 * 8, 2), c = integers<double>(64, 3);
  Buffer<double> a_buffer(a), b_buffer(b), d(c);
  check(xlstm::device::launch({.block = 32, .name = "mma f64"}, mma_f64_kernel, a_buffer.data(), b_buffer.data(),
                              d.data()));
  synchronise();
  std::vector<double> expected = c;
  for (int i = 0; i < 64; ++i) {
    for (int k = 0; k < 4; ++k) expected[i] += a[i / 8 * 4 + k] * b[k * 8 + i % 8];
  }
  return {floats(d.read()), floats(expected)};
}

// Halves of the last place go away from zero; infinities stay.
Outcome run_round_tf32() {
  std::vector<float> x, expected;
  for (int lane = 0; lane < 32; ++lane) {
    const float place = 0x1p-10f * (lane % 2 ? -1.f : 1.f), part = static_cast<float>(lane % 8) / 8;
    x.push_back((lane % 2 ? -1.f : 1.f) + place * part);
    expected.push_back((lane % 2 ? -1.f : 1.f) + (part >= 0.5f ? place : 0));
  }
  x[0] = expected[0] = INFINITY;
  x[1] = expected[1] = -INFINITY;
  Buffer<float> x_buffer(x), out(32);
  check(xlstm::device::launch({.block = 32, .name = "round_tf32"}, round_tf32_kernel, x_buffer.data(), out.data()));
  synchronise();
  std::vector<float> got = out.read();
  for (std::vector<float>* values : {&got, &expected}) {
    for (float& value : *values) value = std::isinf(value) ? std::copysign(9.f, value) : value;
  }
  return {got, expected};
}

std::vector<uint16_t> numbered(int n) {
  std::vector<uint16_t> values;
  for (int i = 0; i < n; ++i) values.push_back(static_cast<uint16_t>(i * 3 + 1));
  return values;
}

// Element of matrix i at (row, column), in (32, 8) rows and in (matrices, 32 lanes, 2) fragments.
constexpr int in_rows(int i, int row, int column) {
  return (8 * i + row) * 8 + column;
}
constexpr int in_fragments(int i, int row, int column) {
  return (i * 32 + row * 4 + column / 2) * 2 + column % 2;
}

template <int kMatrices, bool kTrans>
Outcome run_ldmatrix() {
  const std::vector<uint16_t> x = numbered(32 * 8);
  Buffer<uint16_t> x_buffer(x);
  Buffer<float> out(kMatrices * 64);
  check(xlstm::device::launch({.block = 32, .shared_bytes = sizeof(MatricesShared), .name = "ldmatrix"},
                              ldmatrix_kernel<kMatrices, kTrans>, x_buffer.data(), out.data()));
  synchronise();
  std::vector<float> expected(kMatrices * 64);
  for (int n = 0; n < kMatrices * 64; ++n) {
    const int i = n / 64, row = n / 8 % 8, column = n % 8;
    expected[kTrans ? in_fragments(i, column, row) : in_fragments(i, row, column)] = x[in_rows(i, row, column)];
  }
  return {out.read(), expected};
}

template <int kMatrices, bool kTrans>
Outcome run_stmatrix() {
  const std::vector<uint16_t> x = numbered(kMatrices * 64);
  Buffer<uint16_t> x_buffer(x);
  Buffer<float> out(kMatrices * 64);
  check(xlstm::device::launch({.block = 32, .shared_bytes = sizeof(MatricesShared), .name = "stmatrix"},
                              stmatrix_kernel<kMatrices, kTrans>, x_buffer.data(), out.data()));
  synchronise();
  std::vector<float> expected(kMatrices * 64);
  for (int n = 0; n < kMatrices * 64; ++n) {
    const int i = n / 64, row = n / 8 % 8, column = n % 8;
    expected[in_rows(i, row, column)] = x[kTrans ? in_fragments(i, column, row) : in_fragments(i, row, column)];
  }
  return {out.read(), expected};
}

Outcome run_movmatrix() {
  const std::vector<uint16_t> x = numbered(64);
  Buffer<uint16_t> x_buffer(x);
  Buffer<float> out(64);
  check(xlstm::device::launch({.block = 32, .name = "movmatrix"}, movmatrix_kernel, x_buffer.data(), out.data()));
  synchronise();
  std::vector<float> expected(64);
  for (int n = 0; n < 64; ++n) expected[in_fragments(0, n % 8, n / 8)] = x[in_fragments(0, n / 8, n % 8)];
  return {out.read(), expected};
}

}  // namespace

Cases wrapper_warp_cases() {
  Cases cases{{"wrapper: mma bf16", run_mma<MmaType::bf16>},
              {"wrapper: mma fp16", run_mma<MmaType::f16>},
              {"wrapper: mma tf32", run_mma<MmaType::tf32>},
              {"wrapper: mma f64", run_mma_f64},
              {"wrapper: round_tf32", run_round_tf32},
              {"wrapper: ldmatrix x1", run_ldmatrix<1, false>},
              {"wrapper: ldmatrix x2", run_ldmatrix<2, false>},
              {"wrapper: ldmatrix x4", run_ldmatrix<4, false>},
              {"wrapper: ldmatrix x1 trans", run_ldmatrix<1, true>},
              {"wrapper: ldmatrix x2 trans", run_ldmatrix<2, true>},
              {"wrapper: ldmatrix x4 trans", run_ldmatrix<4, true>},
              {"wrapper: stmatrix x1", run_stmatrix<1, false>},
              {"wrapper: stmatrix x2", run_stmatrix<2, false>},
              {"wrapper: stmatrix x4", run_stmatrix<4, false>},
              {"wrapper: stmatrix x1 trans", run_stmatrix<1, true>},
              {"wrapper: stmatrix x2 trans", run_stmatrix<2, true>},
              {"wrapper: stmatrix x4 trans", run_stmatrix<4, true>},
              {"wrapper: movmatrix", run_movmatrix}};
  for (Case& c : cases) {
    if (c.name.find("stmatrix") != std::string::npos) c.needs = Needs::sm_90;
  }
  return cases;
}

}  // namespace selftest
