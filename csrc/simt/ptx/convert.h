#pragma once
// cvt (PTX ISA 9.7.9.22): between integers, floating point and the 16-bit types. Conversions to integers saturate.
#include <cstring>

#include "simt/ptx/floating.h"

namespace ptx {

template <class T>
constexpr bool kIsFloat = std::is_floating_point_v<T>;

template <Round R, class T>
inline T to_whole(T a) {
  if constexpr (R == rni)
    return std::nearbyint(a);  // the mode of the processor is to nearest even
  else if constexpr (R == rzi)
    return std::trunc(a);
  else if constexpr (R == rmi)
    return std::floor(a);
  else if constexpr (R == rpi)
    return std::ceil(a);
  else
    return a;
}

inline f32 widen(f16 a) {
  return static_cast<f32>(std::bit_cast<_Float16>(a));
}
inline f32 widen(bf16 a) {
  return std::bit_cast<f32>(u32{a.bits} << 16);
}
inline f16 narrow_f16(f32 a) {
  if (a != a) return {0x7fff};
  return std::bit_cast<f16>(static_cast<_Float16>(a));
}
inline bf16 narrow_bf16(f32 a) {
  if (a != a) return {0x7fff};
  const u32 bits = std::bit_cast<u32>(a);
  return {static_cast<u16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <Round R>
inline tf32 narrow_tf32(f32 a) {
  const u32 bits = std::bit_cast<u32>(a);
  if ((bits & 0x7f800000) == 0x7f800000) return {a != a ? 0x7fffffffu : bits};
  return {(bits + (R == rna ? 0x1000 : R == rn ? 0xfff + (bits >> 13 & 1) : 0)) & ~0x1fffu};
}

template <class To, bool kSat, class From>
inline To integer_to_integer(From a) {
  if constexpr (kSat) {
    const __int128 least = std::numeric_limits<To>::min(), most = std::numeric_limits<To>::max(), value = a;
    return static_cast<To>(value < least ? least : value > most ? most : value);
  } else {
    return static_cast<To>(a);
  }
}
// NaN: zero, or the sign bit alone where one side has 64 bits.
template <class To, Round R, bool kFtz, class From>
inline To float_to_integer(From a) {
  static_assert(R == rni || R == rzi || R == rmi || R == rpi);
  using Limits = std::numeric_limits<To>;
  if (a != a) {
    const bool wide = sizeof(From) == 8 || sizeof(To) == 8;
    return wide ? static_cast<To>(Unsigned<To>{1} << (8 * sizeof(To) - 1)) : To{0};
  }
  const From whole = to_whole<R>(flushed<kFtz>(a));
  const From least = static_cast<From>(Limits::min()), end = std::ldexp(From{1}, Limits::digits);
  return whole < least ? Limits::min() : whole >= end ? Limits::max() : static_cast<To>(whole);
}

template <class To, class From, Round R, bool kFtz, bool kSat>
inline To cvt(From a) {
  if constexpr (std::is_integral_v<From> && std::is_integral_v<To>) {
    return integer_to_integer<To, kSat>(a);
  } else if constexpr (std::is_integral_v<From> && kIsFloat<To>) {
    static_assert(R == rn || (R == none && sizeof(From) <= 2));
    return static_cast<To>(a);
  } else if constexpr (kIsFloat<From> && std::is_integral_v<To>) {
    return float_to_integer<To, R, kFtz>(a);
  } else if constexpr (kIsFloat<From> && kIsFloat<To>) {
    static_assert(sizeof(To) >= sizeof(From) || R == rn);
    return finished<kFtz, kSat>(static_cast<To>(to_whole<R>(flushed<kFtz>(a))));
  } else if constexpr (std::is_same_v<From, f16> || std::is_same_v<From, bf16>) {
    static_assert(R == none && kIsFloat<To>);
    return finished<kFtz, kSat>(static_cast<To>(widen(a)));
  } else if constexpr (std::is_same_v<To, f16>) {
    static_assert(std::is_same_v<From, f32> && R == rn && !kSat);
    return narrow_f16(flushed<kFtz>(a));
  } else if constexpr (std::is_same_v<To, bf16>) {
    static_assert(std::is_same_v<From, f32> && R == rn && !kSat && !kFtz);
    return narrow_bf16(a);
  } else {
    static_assert(std::is_same_v<From, f32> && std::is_same_v<To, tf32> && (R == rna || R == rn || R == rz));
    return narrow_tf32<R>(a);
  }
}
// Two values into one register: the first one is the upper half.
template <class To, class From, Round R, bool kFtz, bool kSat>
inline To cvt(From upper, From lower) {
  static_assert(R == rn && !kSat && !kFtz);
  if constexpr (std::is_same_v<To, bf16x2>)
    return {u32{narrow_bf16(upper).bits} << 16 | narrow_bf16(lower).bits};
  else
    return {u32{narrow_f16(upper).bits} << 16 | narrow_f16(lower).bits};
}

}  // namespace ptx
