#pragma once
// Special functions (.approx): the accurate result in the place of the hardware's, or any that the ISA's bound of the
// error allows (adversary.h). Bounds are relative where nothing else is said.
#include "simt/ptx/adversary.h"
#include "simt/ptx/floating.h"

namespace ptx {

template <class T, bool kFtz>
inline T rcp_approx(T a) {
  if constexpr (std::is_same_v<T, f64>) {  // of the upper 32 bits; the lower ones of the result are zero
    const auto upper_half = [](f64 x) {
      const f64 cut = std::bit_cast<f64>(std::bit_cast<u64>(x) & ~u64{0xffffffff});
      return std::fabs(cut) < 0x1p-1022 ? std::copysign(0., cut) : cut;
    };
    return upper_half(approximate(1. / upper_half(a), a, 0x1p-20));
  } else {
    return approximate(rcp_rn<T, kFtz>(a), a, 0x1p-23);  // 1 ulp
  }
}
template <class T, bool kFtz>
inline T div_approx(T a, T b) {
  return approximate(div_rn<T, kFtz>(a, b), a, 0x1p-22);  // 2 ulp
}
template <class T, bool kFtz>
inline T sqrt_approx(T a) {
  return approximate(sqrt_rn<T, kFtz>(a), a, 0x1p-23);
}
template <class T, bool kFtz>
inline T rsqrt_approx(T a) {
  const T exact = static_cast<T>(1. / std::sqrt(static_cast<f64>(flushed<kFtz>(a))));
  return approximate(finished<kFtz, false>(exact), a, 0x1.1p-23);
}
template <class T, bool kFtz>
inline T ex2_approx(T a) {
  return approximate(finished<kFtz, false>(std::exp2(flushed<kFtz>(a))), a, 0x1p-22);
}
template <class T, bool kFtz>
inline T lg2_approx(T a) {
  const bool near_one = a > T{0.5} && a < T{2};  // there the bound is absolute
  const double bound = 0x1.4p-23;
  return approximate(finished<kFtz, false>(std::log2(flushed<kFtz>(a))), a, near_one ? 0 : bound, near_one ? bound : 0);
}
template <class T, bool kFtz>
inline T tanh_approx(T a) {
  return approximate(canonical(std::tanh(a)), a, 0x1p-11);
}
}  // namespace ptx
