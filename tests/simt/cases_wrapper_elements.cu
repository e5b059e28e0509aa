#include <cmath>

#include "buffer.h"
#include "cases.h"
#include "kernels/wrappers_elements.h"

namespace selftest {
namespace {

using xlstm::cuda::Type;

// ---- elements ----
// Fractions of the last of T's places: a half goes to the even neighbour.
template <class T, class A>
Outcome run_convert(int places) {
  std::vector<A> x;
  std::vector<float> expected;
  for (int i = 0; i < 32; ++i) {
    const double sign = i % 2 ? -1 : 1, last = std::ldexp(1., -places), number = std::ldexp(1., places) + i / 8.;
    x.push_back(static_cast<A>(sign * number * last));
    expected.push_back(static_cast<float>(sign * std::nearbyint(number) * last));
  }
  Buffer<A> x_buffer(x), widened(32);
  Buffer<T> narrowed(32);
  check(xlstm::device::launch({.block = 32, .name = "convert"}, convert_kernel<T, A>, x_buffer.data(), narrowed.data(),
                              widened.data()));
  synchronise();
  std::vector<float> got = narrowed.read_floats();
  for (const float value : widened.read_floats()) got.push_back(value);
  expected.insert(expected.end(), expected.begin(), expected.begin() + 32);
  return {got, expected};
}

template <class T>
Outcome run_vector() {
  constexpr int kCount = xlstm::device::Vector<T>::kCount;
  const std::vector<T> x = integers<T>(32 * kCount, 1);
  Buffer<T> x_buffer(x);
  Buffer<float> out(2 * x.size());
  check(xlstm::device::launch({.block = 32, .name = "vector"}, vector_kernel<T>, x_buffer.data(), out.data()));
  synchronise();
  std::vector<float> expected;
  for (int thread = 0; thread < 32; ++thread) {
    for (const int count : {kCount, thread % (kCount + 1)}) {
      for (int c = 0; c < kCount; ++c) expected.push_back(c < count ? static_cast<float>(x[thread * kCount + c]) : 0.f);
    }
  }
  return {out.read(), expected};
}

template <class T, int kCount>
Outcome run_pack() {
  const std::vector<T> x = integers<T>(64 * kCount, 1);
  Buffer<T> x_buffer(x), out(x.size());
  check(xlstm::device::launch({.block = 32, .name = "pack"}, pack_kernel<T, kCount>, x_buffer.data(), out.data()));
  synchronise();
  std::vector<float> expected;
  for (int pack = 0; pack < 64; ++pack) {
    const bool second = pack >= 32, odd = pack % 2;
    const int from = second == odd ? pack : odd ? pack + 31 : pack - 31;
    for (int c = 0; c < kCount; ++c) expected.push_back(static_cast<float>(x[from * kCount + c]));
  }
  return {out.read_floats(), expected};
}

template <class A, class T>
void add_any(Type type, Outcome& outcome) {
  const std::vector<T> x = uniform<T>(3 * kAnyThreads, 1);
  Buffer<T> x_buffer(x), copy(x.size());
  Buffer<A> out(4 * kAnyThreads);
  check(xlstm::device::launch({.block = kAnyThreads, .name = "any"}, any_kernel<A>, x_buffer.data(), type, copy.data(),
                              out.data()));
  synchronise();
  for (const float value : out.read_floats()) outcome.got.push_back(value);
  for (const float value : copy.read_floats()) outcome.got.push_back(value);
  for (int thread = 0; thread < kAnyThreads; ++thread) {
    for (const int n : {0, 0, 1, 2}) outcome.expected.push_back(static_cast<float>(x[thread + n * kAnyThreads]));
  }
  for (const T value : x) outcome.expected.push_back(static_cast<float>(value));
}

template <class A>
Outcome run_any() {
  Outcome outcome;
  add_any<A, __nv_bfloat16>(Type::bf16, outcome);
  add_any<A, __half>(Type::f16, outcome);
  add_any<A, float>(Type::f32, outcome);
  add_any<A, double>(Type::f64, outcome);
  return outcome;
}

template <class T>
Outcome run_opaque() {
  const std::vector<T> x = integers<T>(32, 1);
  Buffer<T> x_buffer(x), out(32);
  check(xlstm::device::launch({.block = 32, .name = "opaque"}, opaque_kernel<T>, x_buffer.data(), out.data()));
  synchronise();
  std::vector<float> expected;
  for (const T value : x) expected.push_back(static_cast<float>(2 * value));
  return {out.read_floats(), expected};
}

// ---- words ----
template <class T, WordAccess kAccess>
Outcome run_word() {
  uint32_t words[sizeof(T) / 4];
  for (size_t i = 0; i < sizeof(T) / 4; ++i) words[i] = 0x10203 * static_cast<uint32_t>(i + 1);
  T value;
  std::memcpy(&value, words, sizeof value);
  Buffer<T> flag(std::vector<T>{T{}}), data(1), out(2);
  check(xlstm::device::launch({.grid = 2, .cooperative = true, .name = "word"}, word_kernel<T, kAccess>, flag.data(),
                              value, data.data(), out.data()));
  synchronise();
  Outcome outcome;
  for (const T& seen : out.read()) {
    uint32_t seen_words[sizeof(T) / 4];
    std::memcpy(seen_words, &seen, sizeof seen);
    outcome.got.insert(outcome.got.end(), seen_words, seen_words + sizeof(T) / 4);
    outcome.expected.insert(outcome.expected.end(), words, words + sizeof(T) / 4);
  }
  return outcome;
}

Outcome run_reread() {
  Buffer<float> between(32), out(32);
  check(xlstm::device::launch({.block = 32, .shared_bytes = sizeof(RereadShared), .name = "reread"}, reread_kernel,
                              between.data(), out.data()));
  synchronise();
  std::vector<float> expected;
  for (int i = 0; i < 32; ++i) expected.push_back(static_cast<float>(31 - i));
  return {out.read(), expected};
}

}  // namespace

Cases wrapper_elements_cases() {
  using W = WordAccess;
  Cases cases{
      {"wrapper: float to bf16 and back", [] { return run_convert<__nv_bfloat16, float>(7); }},
      {"wrapper: float to fp16 and back", [] { return run_convert<__half, float>(10); }},
      {"wrapper: double to bf16 and back", [] { return run_convert<__nv_bfloat16, double>(7); }},
      {"wrapper: double to fp16 and back", [] { return run_convert<__half, double>(10); }},
      {"wrapper: double to float and back", [] { return run_convert<float, double>(23); }},
      {"wrapper: vectors of bf16", run_vector<__nv_bfloat16>},
      {"wrapper: vectors of float", run_vector<float>},
      {"wrapper: vectors of double", run_vector<double>},
      {"wrapper: packs of 4 bytes", run_pack<__nv_bfloat16, 2>},
      {"wrapper: packs of 8 bytes", run_pack<float, 2>},
      {"wrapper: packs of 16 bytes", run_pack<__half, 8>},
      {"wrapper: elements of any type as float", run_any<float>},
      {"wrapper: elements of any type as double", run_any<double>},
      {"wrapper: opaque float", run_opaque<float>},
      {"wrapper: opaque double", run_opaque<double>},
      {"wrapper: volatile word of 4 bytes", run_word<uint32_t, W::volatile_access>},
      {"wrapper: volatile word of 8 bytes", run_word<uint64_t, W::volatile_access>},
      {"wrapper: relaxed word of 4 bytes", run_word<uint32_t, W::relaxed>},
      {"wrapper: relaxed word of 8 bytes", run_word<uint64_t, W::relaxed>},
      {"wrapper: relaxed words, 16 bytes", run_word<uint4, W::relaxed>},
      {"wrapper: released word of 4 bytes", run_word<uint32_t, W::release>},
      {"wrapper: released word of 8 bytes", run_word<uint64_t, W::release>},
      {"wrapper: bulk load of what the kernel wrote", run_reread},
  };
  cases.back().needs = Needs::sm_90;
  return cases;
}

}  // namespace selftest
