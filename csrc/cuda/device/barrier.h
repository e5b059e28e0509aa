#pragma once
// Named barriers of a block, 1 to 15 (0 is __syncthreads), for `threads` threads: a multiple of 32.
#include "cuda/device/platform.h"

namespace xlstm::device {

XLSTM_DEVICE void barrier_sync(int id, int threads, [[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::named_barrier(id, threads, true, where);
#else
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

XLSTM_DEVICE void barrier_arrive(int id, int threads, [[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::named_barrier(id, threads, false, where);
#else
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

}  // namespace xlstm::device
