#pragma once
// Planted faults that prove the tests: XLSTM_MUTANT("kernel: what is wrong") is true on the host executor where a test
// has chosen it by name. For a device it is the word `false`, and the compiler drops what is wrong with its operands.
// In PTX that is built for tests (XLSTM_PTX_FAULTS) it is chosen at run time as well, by a hash of its name.
// A fault is one statement of its kernel:
//   a barrier is left out       sync_threads(XLSTM_MUTANT("..")), grid_sync(XLSTM_MUTANT(".."))
//   a wait is left out          mbarrier_wait_cluster(mbarrier, parity, of, XLSTM_MUTANT(".."))
//   a wait is too short         cp_async_wait<kGroups>(XLSTM_MUTANT(".."))
//   an index is off by one      index + XLSTM_MUTANT("..")
//   a value is wrong            XLSTM_MUTANT("..") ? wrong : right
// The last one also where something follows that the compiler keeps for a zero: `(x + 0) % y` is a division.
#include "cuda/device/cp_async.h"
#include "cuda/device/fault_hash.h"
#include "cuda/device/grid.h"
#include "cuda/device/mbarrier.h"
#include "cuda/device/platform.h"

#if XLSTM_SIMT
#define XLSTM_MUTANT(name) simt::mutant(name)
#elif XLSTM_PTX_FAULTS
#define XLSTM_MUTANT(name) xlstm::device::planted<xlstm::device::fault_hash(name)>()
#else
#define XLSTM_MUTANT(name) false
#endif

namespace xlstm::device {

#if XLSTM_PTX_FAULTS
static __device__ volatile uint32_t xlstm_planted_fault = 0;  // the executor's own variable takes its place
template <uint32_t kHash>
XLSTM_DEVICE bool planted() {
  return xlstm_planted_fault == kHash;
}
#endif

XLSTM_DEVICE void sync_threads(bool left_out, [[maybe_unused]] Source where = Source::here()) {
  if (left_out) return;
#if XLSTM_SIMT
  __syncthreads(where);
#else
  __syncthreads();
#endif
}

XLSTM_DEVICE void grid_sync(bool left_out, Source where = Source::here()) {
  if (!left_out) device::grid_sync(where);
}

XLSTM_DEVICE void mbarrier_wait_cluster(uint32_t mbarrier, uint32_t parity, const Awaited& of, bool left_out,
                                        Source where = Source::here()) {
  if (!left_out) device::mbarrier_wait_cluster(mbarrier, parity, of, where);
}

// too_short: one group more may be in flight.
template <int kGroups>
XLSTM_DEVICE void cp_async_wait(bool too_short, Source where = Source::here()) {
  if (too_short) {
    device::cp_async_wait<kGroups + 1>(where);
  } else {
    device::cp_async_wait<kGroups>(where);
  }
}

}  // namespace xlstm::device
