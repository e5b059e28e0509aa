#include <numeric>

#include "buffer.h"
#include "cases.h"
#include "kernels/memory.h"

namespace selftest {
namespace {

std::vector<float> iota(int n) {
  std::vector<float> values(n);
  std::iota(values.begin(), values.end(), 0.f);
  return values;
}

std::vector<float> reversed(std::vector<float> values) {
  return {values.rbegin(), values.rend()};
}

template <MemoryFault kFault>
Outcome run_reverse() {
  constexpr bool kUnset = kFault == MemoryFault::unset_input, kSmall = kFault == MemoryFault::past_shared_memory;
  Buffer<float> set(iota(32)), unset(32), out(32);
  const size_t bytes = sizeof(WarpShared) - (kSmall ? 16 : 0);
  check(xlstm::device::launch({.block = 32, .shared_bytes = bytes, .name = "reverse"}, reverse_kernel<kFault>,
                              kUnset ? unset.data() : set.data(), out.data()));
  synchronise();
  return {out.read(), reversed(iota(32))};
}

// The second kernel reads what the first has written: nobody else marked it as written.
Outcome run_twice() {
  Buffer<float> x(iota(32)), between(32), out(32);
  const xlstm::device::Launch l{.block = 32, .shared_bytes = sizeof(WarpShared), .name = "reverse"};
  check(xlstm::device::launch(l, reverse_kernel<MemoryFault::none>, x.data(), between.data()));
  check(xlstm::device::launch(l, reverse_kernel<MemoryFault::none>, between.data(), out.data()));
  synchronise();
  return {out.read(), iota(32)};
}

template <MemoryFault kFault>
Outcome run_count() {
  constexpr int kBlocks = 4;
  Buffer<int> out(std::vector<int>(1 + kBlocks, 0));
  check(xlstm::device::launch({.grid = kBlocks, .block = 64, .name = "count"}, count_kernel<kFault>, out.data()));
  synchronise();
  std::vector<float> expected = iota(kBlocks);
  if (kFault == MemoryFault::same_word) expected.assign(kBlocks, 0.f);
  expected.insert(expected.begin(), kBlocks * 64.f);
  return {out.read_floats(), expected};
}

template <MemoryFault kFault>
Outcome run_split_warp() {
  Buffer<float> out(32);
  check(xlstm::device::launch({.block = 32, .name = "split_warp"}, split_warp_kernel<kFault>, out.data()));
  synchronise();
  std::vector<float> expected;
  for (int lane = 0; lane < 32; ++lane) expected.push_back(static_cast<float>(lane ^ 1));
  return {out.read(), expected};
}

template <MemoryFault kFault>
Outcome run_constant() {
  Buffer<float> x(iota(33)), out(32);
  check(xlstm::device::launch({.block = 32, .name = "constant"}, constant_kernel<kFault>, x.data(), out.data()));
  synchronise();
  const std::vector<float> expected = iota(33);
  return {out.read(), {expected.begin() + 1, expected.end()}};
}

template <int kOffset>
Outcome run_vector_load() {
  Buffer<float> x(iota(16)), out(4);
  check(xlstm::device::launch({.name = "vector_load"}, vector_load_kernel, x.data(), out.data(), kOffset));
  synchronise();
  return {out.read(), {kOffset + 0.f, kOffset + 1.f, kOffset + 2.f, kOffset + 3.f}};
}

#if XLSTM_FAULTY_CASES
Outcome run_local_array() {
  Buffer<float> out(1);
  check(xlstm::device::launch({.name = "local_array"}, local_array_kernel, out.data(), 5));
  return {out.read(), {10.f}};
}

Outcome run_far_write() {
  Buffer<float> out(std::vector<float>(16, 0.f));
  check(xlstm::device::launch({.name = "far_write"}, far_write_kernel, out.data(), 16 + 256));
  return {out.read(), std::vector<float>(16, 0.f)};
}

#endif

#if XLSTM_SIMT
Outcome run_recursive() {
  Buffer<float> out(1);
  check(xlstm::device::launch({.name = "recursive"}, recursive_kernel, out.data(), 2000));
  return {out.read(), {0.f}};
}
#endif

}  // namespace

Cases memory_cases() {
  using F = MemoryFault;
  Cases cases{{"memory: exchange in a warp", run_reverse<F::none>},
              {"memory: reads what an earlier kernel wrote", run_twice},
              {"memory: atomic counter", run_count<F::none>},
              {"memory: shuffles in parts of a warp", run_split_warp<F::none>},
              {"memory: loads of constant memory", run_constant<F::none>},
              {"memory: aligned float4", run_vector_load<4>}};
#if XLSTM_FAULTY_CASES
  cases.insert(
      cases.end(),
      {{"memory: exchange in a warp without __syncwarp", run_reverse<F::no_syncwarp>, 0, Expect::fault, {"memory.h:"}},
       {"memory: reads global memory never written",
        run_reverse<F::unset_input>,
        0,
        Expect::fault,
        {"UNINITIALISED", "memory.h:"}},
       {"memory: shared memory past its end", run_reverse<F::past_shared_memory>, 0, Expect::fault, {"OUT OF BOUNDS"}},
       {"memory: two blocks write one word", run_count<F::same_word>, 0, Expect::fault_race, {"RACE", "memory.h:"}},
       {"memory: plain read of an atomic counter",
        run_count<F::read_of_atomic>,
        0,
        Expect::fault_race,
        {"RACE", "memory.h:"}},
       {"memory: constant memory that the kernel has written",
        run_constant<F::written_constant>,
        0,
        Expect::fault_race,
        {"ld.global.nc", "memory.h:"}},
       {"memory: shuffle from outside the mask", run_split_warp<F::lane_outside_mask>, 0, Expect::fault, {"memory.h:"}},
       {"memory: misaligned float4", run_vector_load<1>, 0, Expect::fault_race_only, {"MISALIGNED"}},
       {"memory: local array overrun", run_local_array, 0, Expect::fault_race_only, {"memory.h"}},
       {"memory: write far out of bounds", run_far_write, 0, Expect::fault, {"OUT OF BOUNDS", "memory.h:"}}});
#endif
#if XLSTM_SIMT
  cases.push_back({"memory: stack overflow", run_recursive, 0, Expect::fault, {"STACK OVERFLOW"}});
  cases.back().source_only = true;
#endif
  return cases;
}

}  // namespace selftest
