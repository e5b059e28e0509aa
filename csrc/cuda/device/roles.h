#pragma once
// For warps of different roles (sm_90): one lane that acts for its warp, and registers that warpgroups hand to one
// another.
#include "cuda/device/platform.h"

namespace xlstm::device {

// True in one lane of the warp, always the same one. All 32 lanes call it.
XLSTM_DEVICE bool elect_one([[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  return simt::elect(~0u, where).self;
#else
  uint32_t elected = 0;
  XLSTM_ASM_SM90("{ .reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p; }" : "=r"(elected));
  return elected != 0;
#endif
}

// x, which is the same in all lanes, and the compiler knows: what wgmma depends on must not seem to differ.
XLSTM_DEVICE int uniform(int x) {
  return __shfl_sync(~0u, x, 0);
}

// Registers of each thread from here on, a multiple of 8 from 24 to 256 (sm_90a): a warpgroup that needs few gives up
// the others, one that needs many waits for them. All 128 threads call it. Launch bounds say what each starts with, and
// together the warpgroups of a block may have what they started with.
template <int kRegisters>
XLSTM_DEVICE void set_max_registers_dec([[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::set_max_registers(kRegisters, false, where);
#else
  XLSTM_ASM_SM90A("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

template <int kRegisters>
XLSTM_DEVICE void set_max_registers_inc([[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::set_max_registers(kRegisters, true, where);
#else
  XLSTM_ASM_SM90A("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

}  // namespace xlstm::device
