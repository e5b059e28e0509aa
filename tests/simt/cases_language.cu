#include "buffer.h"
#include "cases.h"
#include "kernels/language.h"

namespace selftest {
namespace {

Outcome run_template() {
  Buffer<float> out(64);
  check(xlstm::device::launch({.block = 64, .shared_bytes = sizeof(LanguageShared<float>), .name = "template"},
                              template_kernel<float, 3>, out.data()));
  synchronise();
  const int table[4] = {1, 2, 3, 5};
  std::vector<float> expected;
  for (int t = 63; t >= 0; --t) expected.push_back(static_cast<float>((t * 3 + table[t & 3]) * 2));
  return {out.read(), expected};
}

Outcome run_index() {
  constexpr int kBlocks = 2 * 3 * 2, kThreads = 8 * 4 * 2;
  Buffer<float> out(kBlocks * kThreads);
  check(xlstm::device::launch({.grid = dim3(2, 3, 2), .block = dim3(8, 4, 2), .name = "index"}, index_kernel,
                              out.data()));
  synchronise();
  std::vector<float> expected;
  for (int block = 0; block < kBlocks; ++block) {
    for (int thread = 0; thread < kThreads; ++thread) expected.push_back(static_cast<float>(block * 1000 + thread));
  }
  return {out.read(), expected};
}

Outcome run_large_locals() {
  Buffer<int> stride(std::vector<int>{7});
  Buffer<float> out(1);
  check(xlstm::device::launch({.name = "large_locals"}, large_locals_kernel, stride.data(), out.data()));
  synchronise();
  return {out.read(), {3.5f * 20000}};
}

Outcome run_guarded() {
  constexpr int kSize = 100;
  Buffer<float> out(kSize);
  check(xlstm::device::launch({.grid = 2, .block = 64, .name = "guarded"}, guarded_kernel, out.data(), kSize));
  synchronise();
  std::vector<float> expected;
  for (int i = 0; i < kSize; ++i) expected.push_back(static_cast<float>(i));
  return {out.read(), expected};
}

}  // namespace

Cases language_cases() {
  return {{"language: template, __constant__ and a table", run_template},
          {"language: three-dimensional indices", run_index},
          {"language: 80 KB of local variables", run_large_locals},
          {"language: threads past the end leave", run_guarded}};
}

}  // namespace selftest
