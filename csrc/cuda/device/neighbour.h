#pragma once
// An even lane and the odd one after it share their accesses to memory: of two vectors of 16 bytes or less, each takes
// the one that completes a sector of 32 bytes with what its neighbour takes. By all lanes of a warp.
#include "cuda/device/platform.h"

namespace xlstm::device {

XLSTM_DEVICE bool is_odd_lane() {
  return threadIdx.x % 2 != 0;
}

// The even lane's `second` for the odd lane's `first`. Twice is back again.
template <class T>
XLSTM_DEVICE void swap_with_neighbour(T& first, T& second) {
  static_assert(sizeof(T) % sizeof(uint32_t) == 0);
  struct Words {
    uint32_t x[sizeof(T) / sizeof(uint32_t)];
  };
  const bool odd = is_odd_lane();
  Words a = bits_as<Words>(first), b = bits_as<Words>(second);
#pragma unroll
  for (size_t n = 0; n < sizeof(T) / sizeof(uint32_t); ++n) {
    const uint32_t taken = __shfl_xor_sync(~0u, odd ? a.x[n] : b.x[n], 1);
    a.x[n] = odd ? taken : a.x[n];
    b.x[n] = odd ? b.x[n] : taken;
  }
  first = bits_as<T>(a), second = bits_as<T>(b);
}

}  // namespace xlstm::device
