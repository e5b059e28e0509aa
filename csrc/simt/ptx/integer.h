#pragma once
// Integer and bit instructions (PTX ISA 9.7.1, 9.7.8, 9.7.9). Arithmetic wraps.
#include <algorithm>

#include "simt/ptx/types.h"

namespace ptx {

template <class T>
inline T add_int(T a, T b) {
  return static_cast<T>(static_cast<u64>(a) + static_cast<u64>(b));
}
template <class T>
inline T sub_int(T a, T b) {
  return static_cast<T>(static_cast<u64>(a) - static_cast<u64>(b));
}

template <class T>
using Doubled = std::conditional_t<sizeof(T) == 8, std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>,
                                   std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, s64, u64>,
                                                      std::conditional_t<std::is_signed_v<T>, s32, u32>>>;

template <class T>
inline T mul_lo(T a, T b) {
  return static_cast<T>(static_cast<u64>(a) * static_cast<u64>(b));
}
template <class T>
inline Doubled<T> mul_wide(T a, T b) {
  return static_cast<Doubled<T>>(a) * static_cast<Doubled<T>>(b);
}
template <class T>
inline T mul_hi(T a, T b) {
  return static_cast<T>(mul_wide<T>(a, b) >> 8 * sizeof(T));
}

// By zero the ISA leaves the result open; devices give all ones, and the dividend as the remainder.
template <class T>
inline T div(T a, T b) {
  if (b == 0) return static_cast<T>(~T{0});
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return sub_int<T>(0, a);
  return static_cast<T>(a / b);
}
template <class T>
inline T rem(T a, T b) {
  if (b == 0) return a;
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
  return static_cast<T>(a % b);
}

template <class T>
inline T min_int(T a, T b) {
  return a < b ? a : b;
}
template <class T>
inline T max_int(T a, T b) {
  return a > b ? a : b;
}

// Shifts beyond the width: zeros, or the sign.
template <class T>
inline T shl(T a, u32 n) {
  return n < 8 * sizeof(T) ? static_cast<T>(static_cast<u64>(a) << n) : T{0};
}
template <class T>
inline T shr(T a, u32 n) {
  const u32 most = 8 * sizeof(T) - 1;
  if (n > most) return std::is_signed_v<T> ? static_cast<T>(a >> most) : T{0};
  return static_cast<T>(a >> n);
}

// Funnel shifts of the 64 bits b:a.
template <class>
inline u32 shf_l_wrap(u32 a, u32 b, u32 n) {
  return static_cast<u32>((u64{b} << 32 | a) << (n & 31) >> 32);
}
template <class>
inline u32 shf_r_wrap(u32 a, u32 b, u32 n) {
  return static_cast<u32>((u64{b} << 32 | a) >> (n & 31));
}
template <class>
inline u32 shf_l_clamp(u32 a, u32 b, u32 n) {
  return n >= 32 ? a : shf_l_wrap<u32>(a, b, n);
}
template <class>
inline u32 shf_r_clamp(u32 a, u32 b, u32 n) {
  return n >= 32 ? b : shf_r_wrap<u32>(a, b, n);
}

// Only the low eight bits of a position and a length count.
template <class T>
inline T bfi(T a, T b, u32 position, u32 length) {
  position &= 0xff, length &= 0xff;
  const u32 bits = 8 * sizeof(T);
  if (position >= bits) return b;
  const T field = length >= bits ? static_cast<T>(~T{0}) : static_cast<T>((T{1} << length) - 1);
  const T mask = static_cast<T>(field << position);
  return static_cast<T>((a << position & mask) | (b & ~mask));
}
template <class T>
inline T bfe(T a, u32 position, u32 length) {
  position &= 0xff, length &= 0xff;
  const u32 bits = 8 * sizeof(T);
  const auto bit = [&](u32 at) { return static_cast<Unsigned<T>>(a) >> at & 1; };
  const bool sign = std::is_signed_v<T> && length && bit(std::min(position + length - 1, bits - 1));
  Unsigned<T> value = 0;
  for (u32 i = 0; i < bits; ++i) {
    const bool set = i < length && position + i < bits ? bit(position + i) : sign;
    value |= static_cast<Unsigned<T>>(Unsigned<T>{set} << i);
  }
  return static_cast<T>(value);
}

// The most significant bit that differs from the sign; all ones where none does.
template <class T>
inline u32 bfind(T a) {
  Unsigned<T> bits = static_cast<Unsigned<T>>(a);
  if (std::is_signed_v<T> && a < 0) bits = static_cast<Unsigned<T>>(~bits);
  return bits ? 8 * sizeof(T) - 1 - std::countl_zero(bits) : ~0u;
}
template <class T>
inline u32 bfind_shiftamt(T a) {
  const u32 position = bfind<T>(a);
  return position == ~0u ? position : 8 * sizeof(T) - 1 - position;
}
template <class T>
inline T brev(T a) {
  T reversed = 0;
  for (u32 i = 0; i < 8 * sizeof(T); ++i) reversed |= (a >> i & 1) << (8 * sizeof(T) - 1 - i);
  return reversed;
}
template <class T>
inline u32 clz(T a) {
  return std::countl_zero(a);
}
template <class T>
inline u32 popc(T a) {
  return std::popcount(a);
}

// Four bytes of b:a, each by a nibble of the selector; its highest bit spreads the byte's sign.
template <class>
inline u32 prmt(u32 a, u32 b, u32 selector) {
  const u64 bytes = u64{b} << 32 | a;
  u32 result = 0;
  for (int i = 0; i < 4; ++i) {
    const u32 nibble = selector >> 4 * i & 0xf;
    u32 byte = bytes >> 8 * (nibble & 7) & 0xff;
    if (nibble & 8) byte = byte & 0x80 ? 0xff : 0;
    result |= byte << 8 * i;
  }
  return result;
}

// Any function of three bits, by its table.
template <int kTable>
inline u32 lop3(u32 a, u32 b, u32 c) {
  u32 result = 0;
  for (int i = 0; i < 8; ++i) {
    if (kTable >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  }
  return result;
}

}  // namespace ptx
