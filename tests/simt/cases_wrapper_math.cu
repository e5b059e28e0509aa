#include <algorithm>
#include <bit>
#include <cmath>

#include "buffer.h"
#include "cases.h"
#include "kernels/wrappers_math.h"

namespace selftest {
namespace {

Outcome run_math() {
  const std::vector<float> x = uniform(32, 1, 4.f);
  Buffer<float> x_buffer(x), out(kMathFunctions * 32);
  check(xlstm::device::launch({.block = 32, .name = "math"}, math_kernel, x_buffer.data(), out.data()));
  synchronise();
  std::vector<float> expected(kMathFunctions * 32);
  for (int i = 0; i < 32; ++i) {
    const double value = x[i], positive = std::fabs(value) + 0.125;
    expected[i] = static_cast<float>(std::exp2(value));
    expected[32 + i] = static_cast<float>(std::log2(positive));
    expected[64 + i] = static_cast<float>(1 / positive);
    expected[96 + i] = static_cast<float>(1 / std::sqrt(positive));
    expected[128 + i] = static_cast<float>(std::tanh(value));
  }
  return {out.read(), expected};
}

Outcome run_subnormal() {
  Buffer<float> x(std::vector<float>{-127.f, 0x1p127f, 0x1p-127f}), out(5);
  check(xlstm::device::launch({.name = "subnormal"}, subnormal_kernel, x.data(), out.data()));
  synchronise();
  return {out.read(), {0.f, 0.f, 1.f, 1.f, 1.f}};
}

// What bits_kernel computes, for all lanes of a warp.
std::vector<float> expected_bits(const std::vector<unsigned>& x) {
  std::vector<float> out;
  const auto put = [&](auto f) {
    for (int lane = 0; lane < 32; ++lane) out.push_back(static_cast<float>(static_cast<unsigned>(f(lane)) & 0xffffff));
  };
  unsigned ballot = 0, sum = 0, low = 255, high = 0, all = ~0u;
  for (int i = 0; i < 32; ++i) {
    ballot |= (x[i] & 1) << i;
    sum += x[i] & 0xff;
    low = std::min(low, x[i] & 0xff);
    high = std::max(high, x[i] & 0xff);
    all &= x[i] | 6;
  }
  put([&](int i) { return std::popcount(x[i]); });
  put([&](int i) { return std::countl_zero(x[i]); });
  put([&](int i) { return x[i] ? std::countr_zero(x[i]) + 1 : 0; });
  put([&](int i) {
    unsigned reversed = 0;
    for (int bit = 0; bit < 32; ++bit) reversed = reversed << 1 | (x[i] >> bit & 1);
    return reversed;
  });
  put([&](int i) {  // bytes 3, 4, 1, 6 of x, ~x
    const uint64_t bytes = uint64_t{~x[i]} << 32 | x[i];
    return (bytes >> 24 & 0xff) | (bytes >> 32 & 0xff) << 8 | (bytes >> 8 & 0xff) << 16 | (bytes >> 48 & 0xff) << 24;
  });
  put([&](int i) { return uint64_t{x[i]} * 0x9E3779B9u >> 32; });
  put([&](int) { return x[5]; });
  put([&](int i) { return x[i / 8 * 8 + (i + 1) % 8]; });
  put([&](int i) { return x[i < 3 ? i : i - 3]; });
  put([&](int i) { return x[i % 16 + 3 < 16 ? i + 3 : i]; });
  put([&](int) { return ballot; });
  put([&](int) { return 3; });
  put([&](int) { return sum; });
  put([&](int) { return high * 256 + low; });
  put([&](int) { return 31 * 256 + all % 256; });
  put([&](int i) {
    unsigned mask = 0;
    for (int other = i % 3; other < 32; other += 3) mask |= 1u << other;
    return mask;
  });
  return out;
}

Outcome run_bits() {
  Random random(1);
  std::vector<unsigned> x(32);
  for (unsigned& value : x) value = random.bits() << 8 | random.bits() >> 16;
  x[3] = 0;
  Buffer<unsigned> x_buffer(x);
  Buffer<float> out(kBitFunctions * 32);
  check(xlstm::device::launch({.block = 32, .name = "bits"}, bits_kernel, x_buffer.data(), out.data()));
  synchronise();
  return {out.read(), expected_bits(x)};
}

Outcome run_block() {
  Buffer<int> words(std::vector<int>{0, 0, 0, 0, 0, 1, 3, 100});
  Buffer<float> out(64 + 8);
  check(xlstm::device::launch({.block = 64, .name = "block"}, block_kernel, words.data(), out.data()));
  synchronise();
  std::vector<float> expected;
  for (int thread = 0; thread < 64; ++thread) {
    expected.push_back(static_cast<float>(22 * 100 + 11 + (thread < 32 ? -40 : -8) * 1000));
  }
  int exclusive_or = 0;
  for (int thread = 0; thread < 64; ++thread) exclusive_or ^= 1 << thread % 7;
  for (const int word : {63 * 64 / 2, 63, -63, (1 << 20) - 1, exclusive_or, 77, 99, 100 - 64}) {
    expected.push_back(static_cast<float>(word));
  }
  return {out.read(), expected};
}

Outcome run_access() {
  std::vector<float> x = uniform(64, 1);
  Buffer<float> x_buffer(x), out(64 + 3), flags(3);
  check(
      xlstm::device::launch({.block = 32, .name = "access"}, access_kernel, x_buffer.data(), out.data(), flags.data()));
  synchronise();
  x.insert(x.end(), {x[0], x[1], x[2]});
  return {out.read(), x};
}

}  // namespace

Cases wrapper_math_cases() {
  return {{"wrapper: approximate functions", run_math, 1e-3},
          {"wrapper: approximate functions of subnormal numbers", run_subnormal},
          {"wrapper: bits, shuffles and votes", run_bits},
          {"wrapper: block votes and atomics", run_block},
          {"wrapper: streaming, L2 and flag accesses", run_access}};
}

}  // namespace selftest
