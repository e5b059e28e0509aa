#pragma once
// A limit to how long a thread waits for others, for looking into a kernel that hangs. With -DXLSTM_DEBUG_WAITS=N a
// wait of more than N milliseconds ends in a line that says what did not come, and in a trap. What ships has no limit:
// there both types are empty. The host executor counts attempts instead, options().wait_limit of them.
#include "cuda/device/platform.h"

#ifndef XLSTM_DEBUG_WAITS
#define XLSTM_DEBUG_WAITS 0
#endif

#if XLSTM_SIMT
#include <string>
#elif XLSTM_DEBUG_WAITS
#include <cstdio>
#endif

namespace xlstm::device {

#if XLSTM_SIMT || XLSTM_DEBUG_WAITS
// What is waited for, as a report names it. Steps count from the first one that the kernel takes.
struct Awaited {
  const char* what;
  int step = -1, tile = -1;
};
#else
struct Awaited {
  template <class... Names>
  XLSTM_DEVICE constexpr Awaited(const char*, Names...) {}
};
#endif

// One wait.
class Patience {
#if XLSTM_SIMT

 public:
  explicit Patience(const Awaited& of) : awaited_(of) {}

  // After each attempt that found nothing.
  void spend(Source where) {
    const uint64_t limit = simt::options().wait_limit;
    if (limit == 0 || ++attempts_ <= limit) return;
    simt::fail(std::string("waited too long for ") + awaited_.what + ", step " + std::to_string(awaited_.step) +
                   ", tile " + std::to_string(awaited_.tile),
               where);
  }

 private:
  const Awaited awaited_;
  uint64_t attempts_ = 0;

#elif XLSTM_DEBUG_WAITS

 public:
  XLSTM_DEVICE explicit Patience(const Awaited& of) : awaited_(of), start_(now()) {}

  XLSTM_DEVICE void spend(Source) const {
    if (now() - start_ <= uint64_t{XLSTM_DEBUG_WAITS} * 1000000) return;
    if (threadIdx.x % 32 + 1 == static_cast<unsigned>(__ffs(__activemask()))) {  // one line for a warp
      printf("xlstm_cuda: block %u, thread %u waited too long for %s, step %d, tile %d\n", blockIdx.x, threadIdx.x,
             awaited_.what, awaited_.step, awaited_.tile);
    }
    __trap();
  }

 private:
  const Awaited awaited_;
  const uint64_t start_;  // nanoseconds

  XLSTM_DEVICE static uint64_t now() {
    uint64_t time;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
    return time;
  }

#else

 public:
  XLSTM_DEVICE explicit Patience(const Awaited&) {}
  XLSTM_DEVICE void spend(Source) const {}

#endif
};

}  // namespace xlstm::device
