#pragma once
// Warpgroups of different roles: one hands its registers on, and an elected lane of it loads; two others compute.
#include "cuda/device/device.h"

namespace selftest {

enum class RoleFault {
  none,
  odd_count,            // no multiple of 8
  too_many,             // more than an SM has
  half_of_a_warpgroup,  // setmaxnreg that two warps do not execute
  raised_by_dec,        // setmaxnreg.dec to more than before
  divergent_elect,      // elect.sync that half of the lanes do not execute
};

constexpr int kRoleThreads = 384, kRoleFloats = 256;

struct RoleShared {
  alignas(16) float values[kRoleFloats];
  alignas(8) uint64_t full;
};

// out: x doubled. elected: for each warp how many lanes were elected, and whether the same one was the second time.
template <RoleFault kFault>
__global__ void __launch_bounds__(kRoleThreads, 1) roles_kernel(const float* x, float* out, float* elected) {
#if XLSTM_SM90A
  using namespace xlstm::device;
  using F = RoleFault;
  XLSTM_SHARED(RoleShared, s);
  const uint32_t full = shared_address(&s.full);
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
  }
  __syncthreads();
  if (kFault != F::divergent_elect || threadIdx.x % 2) {
    const uint32_t first = __ballot_sync(kFault == F::divergent_elect ? 0xaaaaaaaa : ~0u, elect_one());
    const uint32_t second = __ballot_sync(kFault == F::divergent_elect ? 0xaaaaaaaa : ~0u, elect_one());
    if (threadIdx.x % 32 == 1) {
      elected[threadIdx.x / 32 * 2] = static_cast<float>(__popc(first));
      elected[threadIdx.x / 32 * 2 + 1] = first == second;
    }
  }
  if (threadIdx.x < 128) {
    if (kFault != F::half_of_a_warpgroup || threadIdx.x < 64) {
      set_max_registers_dec<kFault == F::odd_count ? 100 : kFault == F::too_many ? 232 : 24>();
    }
    if constexpr (kFault == F::raised_by_dec) set_max_registers_dec<32>();
    if (threadIdx.x < 32 && elect_one()) {
      mbarrier_arrive_expect_tx(full, sizeof s.values);
      bulk_load(shared_address(s.values), x, sizeof s.values, full);
    }
  } else {
    set_max_registers_inc<240>();
    mbarrier_wait(full, 0);
    const int i = threadIdx.x - 128;
    out[i] = 2.f * s.values[i];
  }
#endif
}

}  // namespace selftest
