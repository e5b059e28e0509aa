#include "buffer.h"
#include "cases.h"
#include "kernels/roles.h"
#include "kernels/wgmma_registers.h"

namespace selftest {
namespace {

using T = __nv_bfloat16;

Outcome run_product(void (*kernel)(const float*, const T*, float*), float factor) {
  constexpr int kN = kRegisterColumns;
  const std::vector<float> a = integers(kRegisterSteps * 64 * kDepth, 1);
  const std::vector<T> b = integers<T>(kRegisterSteps * kN * kDepth, 2);
  Buffer<float> a_buffer(a), d(64 * kN);
  Buffer<T> b_buffer(b);
  check(xlstm::device::launch({.block = 128, .shared_bytes = sizeof(RegisterShared), .name = "wgmma_registers"}, kernel,
                              a_buffer.data(), b_buffer.data(), d.data()));
  synchronise();
  std::vector<float> expected(64 * kN, 0.f);
  for (int step = 0; step < kRegisterSteps; ++step) {
    for (int i = 0; i < 64 * kN; ++i) {
      expected[i] *= factor;
      for (int k = 0; k < kDepth; ++k) {
        expected[i] += a[(step * 64 + i / kN) * kDepth + k] * static_cast<float>(b[(step * kN + i % kN) * kDepth + k]);
      }
    }
  }
  return {d.read(), expected};
}

template <RegisterFault kFault>
Outcome run() {
  return run_product(wgmma_registers_kernel<kFault>, 2.f);
}
Outcome run_two_groups() {
  return run_product(wgmma_two_groups_kernel, 1.f);
}

template <RoleFault kFault>
Outcome run_roles() {
  const std::vector<float> x = uniform(kRoleFloats, 1);
  Buffer<float> x_buffer(x), out(kRoleFloats), elected(2 * kRoleThreads / 32);
  check(xlstm::device::launch({.block = kRoleThreads, .shared_bytes = sizeof(RoleShared), .name = "roles"},
                              roles_kernel<kFault>, x_buffer.data(), out.data(), elected.data()));
  synchronise();
  std::vector<float> got = out.read(), expected;
  for (const float value : x) expected.push_back(2.f * value);
  for (const float value : elected.read()) got.push_back(value), expected.push_back(1.f);
  return {got, expected};
}

}  // namespace

Cases wgmma_register_cases() {
  using F = RegisterFault;
  Cases cases{{"registers: correct", run<F::none>},
              {"registers: correct, two groups in flight", run_two_groups},
              {"roles: correct", run_roles<RoleFault::none>}};
  for (Case& c : cases) c.needs = Needs::sm_90a;
#if XLSTM_FAULTY_CASES
  const auto fault = [&](const char* name, Outcome (*run)(), std::vector<std::string> report) {
    cases.push_back({name, run, 0, Expect::refused, std::move(report)});
  };
  const std::string kernel = "'wgmma_registers'", place = "wgmma_registers.h:";
  fault("registers: A repacked in flight", run<F::repacked_in_flight>, {kernel, "of A was changed before", place});
  fault("registers: accumulators scaled after the fence", run<F::scaled_after_fence>,
        {kernel, "accumulator was changed after the last wgmma.fence", place});
  fault("registers: one accumulator scaled after the fence", run<F::one_scaled_after_fence>,
        {kernel, "accumulator was changed after the last wgmma.fence", place});
  fault("registers: A packed after the fence", run<F::packed_after_fence>,
        {kernel, "of A was changed after the last wgmma.fence", place});
  fault("registers: accumulators scaled in flight", run<F::scaled_in_flight>,
        {kernel, "of an accumulator was written before", place});
  fault("registers: a fence of one warp", run<F::one_warp_fences>, {kernel, "DIVERGENT warpgroup", place});
  fault("registers: a wait of half of the warpgroup", run<F::half_waits>, {kernel, "DIVERGENT warpgroup", place});
  fault("registers: a wait for eight groups", run<F::waits_for_eight>, {kernel, "8 groups", place});
  using R = RoleFault;
#if XLSTM_SIMT  // nvcc refuses it by itself
  fault("roles: registers that are no multiple of 8", run_roles<R::odd_count>,
        {"'roles'", "100 registers", "roles.h:"});
  cases.back().source_only = true;
#endif
  fault("roles: more registers than there are", run_roles<R::too_many>, {"'roles'", "an SM has", "roles.h:"});
  fault("roles: registers of half of a warpgroup", run_roles<R::half_of_a_warpgroup>,
        {"'roles'", "DIVERGENT warpgroup", "roles.h:"});
  fault("roles: more registers by dec", run_roles<R::raised_by_dec>, {"'roles'", "setmaxnreg.dec: to", "roles.h:"});
  fault("roles: elect in divergent code", run_roles<R::divergent_elect>, {"'roles'", "elect.sync", "roles.h:"});
#endif
  return cases;
}

}  // namespace selftest
