#pragma once
// Special functions (.approx): the accurate result in the place of the hardware's, whose error the ISA bounds.
#include "simt/ptx/floating.h"

namespace ptx {

template <class T, bool kFtz>
inline T rcp_approx(T a) {
  if constexpr (std::is_same_v<T, f64>) {  // of the upper 32 bits; the lower ones of the result are zero
    const auto upper_half = [](f64 x) {
      const f64 cut = std::bit_cast<f64>(std::bit_cast<u64>(x) & ~u64{0xffffffff});
      return std::fabs(cut) < 0x1p-1022 ? std::copysign(0., cut) : cut;
    };
    return upper_half(1. / upper_half(a));
  } else {
    return rcp_rn<T, kFtz>(a);
  }
}
template <class T, bool kFtz>
inline T div_approx(T a, T b) {
  return div_rn<T, kFtz>(a, b);
}
template <class T, bool kFtz>
inline T sqrt_approx(T a) {
  return sqrt_rn<T, kFtz>(a);
}
template <class T, bool kFtz>
inline T rsqrt_approx(T a) {
  return finished<kFtz, false>(static_cast<T>(1. / std::sqrt(static_cast<f64>(flushed<kFtz>(a)))));
}
template <class T, bool kFtz>
inline T ex2_approx(T a) {
  return finished<kFtz, false>(std::exp2(flushed<kFtz>(a)));
}
template <class T, bool kFtz>
inline T lg2_approx(T a) {
  return finished<kFtz, false>(std::log2(flushed<kFtz>(a)));
}
template <class T, bool kFtz>
inline T tanh_approx(T a) {
  return canonical(std::tanh(a));
}
template <class T, bool kFtz>
inline T sin_approx(T a) {
  return finished<kFtz, false>(std::sin(flushed<kFtz>(a)));
}
template <class T, bool kFtz>
inline T cos_approx(T a) {
  return finished<kFtz, false>(std::cos(flushed<kFtz>(a)));
}

}  // namespace ptx
