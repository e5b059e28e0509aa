#pragma once
// Special functions (.approx): the accurate result in the place of the hardware's, or any that the ISA's bound of the
// error allows (adversary.h). Bounds are relative where nothing else is said.
#include "simt/ptx/adversary.h"
#include "simt/ptx/floating.h"

namespace ptx {

// A result, as exact as T holds it, with the error that the ISA allows.
template <bool kFtz, class T>
inline T inexact(T exact, T operand, double relative, double absolute = 0) {
  return flushed<kFtz>(approximate(finished<kFtz, false>(exact), operand, relative, absolute));
}

// Of an f64: its upper 32 bits, subnormal ones as zeros, and the NaN that the ISA gives.
inline f64 upper_half(f64 x) {
  const f64 cut = std::bit_cast<f64>(std::bit_cast<u64>(x) & ~u64{0xffffffff});
  if (cut != cut) return std::bit_cast<f64>(u64{0x7fffffff} << 32);
  return std::fabs(cut) < 0x1p-1022 ? std::copysign(0., cut) : cut;
}
template <class T, bool kFtz>
inline T rcp_approx(T a) {
  if constexpr (std::is_same_v<T, f64>)
    return upper_half(approximate(1. / upper_half(a), a, 0x1p-20));
  else
    return inexact<kFtz>(1 / flushed<kFtz>(a), a, 0x1p-23);  // 1 ulp
}
// a * (1 / b): where 1 / b would be subnormal, it is zero.
template <class T, bool kFtz>
inline T div_approx(T a, T b) {
  a = flushed<kFtz>(a), b = flushed<kFtz>(b);
  if (std::fabs(b) > 0x1p126f && std::isfinite(b)) return canonical(a * std::copysign(T{0}, b));
  return inexact<kFtz>(a / b, a, 0x1p-22);  // 2 ulp
}
template <class T, bool kFtz>
inline T sqrt_approx(T a) {
  return inexact<kFtz>(std::sqrt(flushed<kFtz>(a)), a, 0x1p-23);
}
template <class T, bool kFtz>
inline T rsqrt_approx(T a) {
  const f64 exact = 1. / std::sqrt(static_cast<f64>(flushed<kFtz>(a)));
  return inexact<kFtz>(static_cast<T>(exact), a, 0x1.1p-23);
}
template <class T, bool kFtz>
inline T ex2_approx(T a) {
  return inexact<kFtz>(std::exp2(flushed<kFtz>(a)), a, 0x1p-22);
}
template <class T, bool kFtz>
inline T lg2_approx(T a) {
  const bool near_one = a > T{0.5} && a < T{2};  // there the bound is absolute
  const double bound = 0x1.4p-23;
  return inexact<kFtz>(std::log2(flushed<kFtz>(a)), a, near_one ? 0 : bound, near_one ? bound : 0);
}
template <class T, bool kFtz>
inline T tanh_approx(T a) {
  return inexact<kFtz>(std::tanh(a), a, 0x1p-11);
}

}  // namespace ptx
