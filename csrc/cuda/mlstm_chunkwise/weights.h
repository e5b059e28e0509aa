#pragma once
// The weights of tokens and of the incoming state, from gate vectors (gates.h). Masks select: where a weight is not
// used, its exponent may be anything.
#include "cuda/device/device.h"
#include "cuda/mlstm_chunkwise/gates.h"

namespace xlstm::cuda {

// 2^(y - z), 0 for y = -inf. kAccurate: not by the special function unit, which flushes subnormal weights to zero.
template <bool kAccurate = false, class A>
XLSTM_DEVICE A decay(Pair<A> y, Pair<A> z) {
  const A x = (y.hi - z.hi) + (y.lo - z.lo);
  if constexpr (sizeof(A) == sizeof(double)) {
    return exp2(x);
  } else {
    return kAccurate ? exp2f(x) : device::exp2_approx(x);
  }
}

// Whether this costs so little that it pays to leave out masks which let everything pass.
template <bool kAccurate, class A>
constexpr bool kCheapDecay = !kAccurate && sizeof(A) == sizeof(float);

// D_ts: of token s in the output of token t of the same chunk. With z and start of the chunk's last token: a_bar_s.
template <bool kAccurate = false, class A>
XLSTM_DEVICE A token_weight(Pair<A> y_s, Pair<A> z_t, int64_t s, int64_t t, int32_t start_t) {
  return start_t <= s && s <= t ? decay<kAccurate>(y_s, z_t) : A{0};
}

// b_bar_t: of the state that enters the chunk in the output of token t.
template <bool kAccurate = false, class A>
XLSTM_DEVICE A state_weight(Pair<A> M, Pair<A> z_t, int32_t start_t) {
  return start_t < 0 ? decay<kAccurate>(M, z_t) : A{0};
}

}  // namespace xlstm::cuda
