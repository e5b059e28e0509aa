#pragma once
// Floating-point instructions that the ISA defines to the bit (9.7.3, 9.7.5): arithmetic in every rounding mode,
// minimum, maximum and comparisons. Compiled without contraction: what is fused in PTX is fused here, and nothing else.
#include <x86intrin.h>

#include <cmath>
#include <limits>

#include "simt/ptx/types.h"

namespace ptx {

// Of arithmetic rn .. rp; of conversions rni .. rpi to whole numbers, rna to the nearest, ties away from zero.
enum Round { none, rni, rzi, rmi, rpi, rna, rn, rz, rm, rp };

inline f32 flush(f32 x) {
  return std::fabs(x) < 0x1p-126f ? std::copysign(0.f, x) : x;
}
template <bool kFtz, class T>
inline T flushed(T x) {
  if constexpr (kFtz && std::is_same_v<T, f32>) return flush(x);
  return x;
}
// .sat: to 0 .. 1, NaN to 0.
template <bool kSat, class T>
inline T saturated(T x) {
  if constexpr (kSat) return x > 0 ? (x < 1 ? x : T{1}) : T{0};
  return x;
}

// ---- directed rounding: the mode of the processor is set around one instruction ----
template <Round R>
inline u32 rounding_control(u32 csr) {
  static_assert(R == rz || R == rm || R == rp);
  return (csr & ~0x6000u) | (R == rm ? 1u : R == rp ? 2u : 3u) << 13;
}
#define PTX_DIRECTED(name, instruction, T)                                  \
  template <Round R>                                                        \
  inline T directed_##name(T a, T b) {                                      \
    const u32 csr = _mm_getcsr(), directed = rounding_control<R>(csr);      \
    T result;                                                               \
    asm volatile("vldmxcsr %3\n\t" instruction " %2, %1, %0\n\tvldmxcsr %4" \
                 : "=&x"(result)                                            \
                 : "x"(a), "x"(b), "m"(directed), "m"(csr));                \
    return result;                                                          \
  }
PTX_DIRECTED(add, "vaddss", f32)
PTX_DIRECTED(add, "vaddsd", f64)
PTX_DIRECTED(mul, "vmulss", f32)
PTX_DIRECTED(mul, "vmulsd", f64)
#undef PTX_DIRECTED
#define PTX_DIRECTED_FMA(instruction, T)                                    \
  template <Round R>                                                        \
  inline T directed_fma(T a, T b, T c) {                                    \
    const u32 csr = _mm_getcsr(), directed = rounding_control<R>(csr);      \
    asm volatile("vldmxcsr %3\n\t" instruction " %2, %1, %0\n\tvldmxcsr %4" \
                 : "+x"(a)                                                  \
                 : "x"(b), "x"(c), "m"(directed), "m"(csr));                \
    return a;                                                               \
  }
PTX_DIRECTED_FMA("vfmadd213ss", f32)
PTX_DIRECTED_FMA("vfmadd213sd", f64)
#undef PTX_DIRECTED_FMA

// A NaN that arithmetic makes is the device's: 0x7fffffff, or the quiet one of f64.
template <class T>
inline T canonical(T x) {
  if constexpr (std::is_same_v<T, f32>) return x != x ? std::bit_cast<f32>(0x7fffffffu) : x;
  return x;
}
template <bool kFtz, bool kSat, class T>
inline T finished(T x) {
  return saturated<kSat>(flushed<kFtz>(canonical(x)));
}

template <Round R, bool kFtz, bool kSat, class T>
inline T add(T a, T b) {
  a = flushed<kFtz>(a), b = flushed<kFtz>(b);
  if constexpr (R == rn)
    return finished<kFtz, kSat>(a + b);
  else
    return finished<kFtz, kSat>(directed_add<R>(a, b));
}
template <Round R, bool kFtz, bool kSat, class T>
inline T sub(T a, T b) {
  return add<R, kFtz, kSat, T>(a, -b);
}
template <Round R, bool kFtz, bool kSat, class T>
inline T mul(T a, T b) {
  a = flushed<kFtz>(a), b = flushed<kFtz>(b);
  if constexpr (R == rn)
    return finished<kFtz, kSat>(a * b);
  else
    return finished<kFtz, kSat>(directed_mul<R>(a, b));
}
template <Round R, bool kFtz, bool kSat, class T>
inline T fma(T a, T b, T c) {
  a = flushed<kFtz>(a), b = flushed<kFtz>(b), c = flushed<kFtz>(c);
  if constexpr (R == rn)
    return finished<kFtz, kSat>(std::fma(a, b, c));
  else
    return finished<kFtz, kSat>(directed_fma<R>(a, b, c));
}
template <class T, bool kFtz>
inline T div_rn(T a, T b) {
  return finished<kFtz, false>(flushed<kFtz>(a) / flushed<kFtz>(b));
}
template <class T, bool kFtz>
inline T rcp_rn(T a) {
  return div_rn<T, kFtz>(T{1}, a);
}
template <class T, bool kFtz>
inline T sqrt_rn(T a) {
  return finished<kFtz, false>(std::sqrt(flushed<kFtz>(a)));
}

template <class T>
inline T abs_value(T a) {
  if constexpr (std::is_integral_v<T>)
    return a < 0 ? static_cast<T>(-static_cast<u64>(a)) : a;
  else
    return std::fabs(a);
}
template <class T>
inline T abs_value_ftz(T a) {
  return flush(std::fabs(a));
}
template <class T>
inline T negate(T a) {
  if constexpr (std::is_integral_v<T>)
    return static_cast<T>(-static_cast<u64>(a));
  else
    return -a;
}
template <class T>
inline T negate_ftz(T a) {
  return flush(-a);
}
template <class T>
inline T copy_sign(T a, T b) {  // the sign of a, the value of b
  return std::copysign(b, a);
}

// One NaN gives the other operand, with .NaN a NaN; -0 is less than +0.
template <bool kNaN, bool kFtz, class T, class Less>
inline T extreme(T a, T b, Less first) {
  a = flushed<kFtz>(a), b = flushed<kFtz>(b);
  if (a != a || b != b) {
    if (kNaN || (a != a && b != b)) return canonical(std::numeric_limits<T>::quiet_NaN());
    return a != a ? b : a;
  }
  return first(a, b) ? a : b;
}
template <bool kNaN, bool kFtz, class T>
inline T min_float(T a, T b) {
  return extreme<kNaN, kFtz>(a, b, [](T x, T y) { return x < y || (x == y && std::signbit(x)); });
}
template <bool kNaN, bool kFtz, class T>
inline T max_float(T a, T b) {
  return extreme<kNaN, kFtz>(a, b, [](T x, T y) { return x > y || (x == y && std::signbit(y)); });
}

// ---- comparisons, of integers too: the plain ones are false with NaN, those with u true ----
#define PTX_COMPARE(name, condition)            \
  template <class T, bool kFtz = false>         \
  inline bool compare_##name(T a, T b) {        \
    a = flushed<kFtz>(a), b = flushed<kFtz>(b); \
    return condition;                           \
  }
PTX_COMPARE(eq, a == b)
PTX_COMPARE(ne, a != b && a == a && b == b)
PTX_COMPARE(lt, a < b)
PTX_COMPARE(le, a <= b)
PTX_COMPARE(gt, a > b)
PTX_COMPARE(ge, a >= b)
PTX_COMPARE(lo, a < b)
PTX_COMPARE(ls, a <= b)
PTX_COMPARE(hi, a > b)
PTX_COMPARE(hs, a >= b)
PTX_COMPARE(equ, !(a < b || a > b))
PTX_COMPARE(neu, a != b)
PTX_COMPARE(ltu, !(a >= b))
PTX_COMPARE(leu, !(a > b))
PTX_COMPARE(gtu, !(a <= b))
PTX_COMPARE(geu, !(a < b))
PTX_COMPARE(num, a == a && b == b)
PTX_COMPARE(nan, a != a || b != b)
#undef PTX_COMPARE

}  // namespace ptx
