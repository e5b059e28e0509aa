#pragma once
// Asynchronous copies of one thread from global to shared memory: visible to that thread after wait, to others after a
// barrier that follows.
#include "cuda/device/platform.h"

namespace xlstm::device {

// Copies kBytes (4, 8 or 16), or writes zeros where `valid` is false (`from` is then not read). 16 bytes bypass L1.
template <int kBytes>
XLSTM_DEVICE void cp_async(uint32_t to, const void* from, bool valid = true,
                           [[maybe_unused]] Source where = Source::here()) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  const int source_bytes = valid ? kBytes : 0;
#if XLSTM_SIMT
  simt::cp_async(to, from, kBytes, source_bytes, where);
#else
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(source_bytes) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(kBytes), "r"(source_bytes)
                 : "memory");
  }
#endif
}

// Copies the first `bytes` of 16, 0 to 16, and writes zeros after them. `from` is aligned to 16 bytes all the same.
XLSTM_DEVICE void cp_async_part(uint32_t to, const void* from, int bytes,
                                [[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::cp_async(to, from, 16, bytes, where);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
#endif
}

// Through L1, for data that a neighbour block reads too.
XLSTM_DEVICE void cp_async_16_ca(uint32_t to, const void* from, bool valid = true,
                                 [[maybe_unused]] Source where = Source::here()) {
  const int source_bytes = valid ? 16 : 0;
#if XLSTM_SIMT
  simt::cp_async(to, from, 16, source_bytes, where);
#else
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(source_bytes) : "memory");
#endif
}

XLSTM_DEVICE void cp_async_commit() {
#if XLSTM_SIMT
  simt::cp_async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until at most kGroups of the latest groups are in flight.
template <int kGroups>
XLSTM_DEVICE void cp_async_wait([[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::cp_async_wait(kGroups, where);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#endif
}

XLSTM_DEVICE void cp_async_wait_all([[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::cp_async_wait(-1, where);
#else
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// The mbarrier receives an arrival once all earlier copies of this thread have landed. noinc: the arrival is one of
// the mbarrier's count; otherwise its pending count is raised first.
XLSTM_DEVICE void cp_async_mbarrier_arrive(uint32_t mbarrier, [[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::cp_async_mbarrier_arrive(mbarrier, false, where);
#else
  XLSTM_ASM_SM90("cp.async.mbarrier.arrive.shared::cta.b64 [%0];" ::"r"(mbarrier) : "memory");
#endif
}

XLSTM_DEVICE void cp_async_mbarrier_arrive_noinc(uint32_t mbarrier, [[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::cp_async_mbarrier_arrive(mbarrier, true, where);
#else
  XLSTM_ASM_SM90("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(mbarrier) : "memory");
#endif
}

}  // namespace xlstm::device
