#pragma once
// How many of something are left.
#include "cuda/device/platform.h"

namespace xlstm::device {

// x, but none for negative x, and at most `most`. From min(max(x, 0), most) and a comparison of it with `most` ptxas
// 13.0 makes one VIMNMX.RELU, whose predicate is not that comparison where x is negative (docs/h200.md).
XLSTM_DEVICE int clamped(int x, int most) {
  const int sign = x >> 31;  // all ones or none
  return min(x & ~sign, most);
}

}  // namespace xlstm::device
