#pragma once
// Registers of PTX: bits of a size, which each instruction takes as the type that it names.
#include <bit>
#include <cstdint>
#include <type_traits>

#include "simt/executor.h"

namespace ptx {

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using f32 = float;
using f64 = double;
// Types that are computed with only after a conversion.
struct f16 {
  u16 bits;
};
struct bf16 {
  u16 bits;
};
struct f16x2 {
  u32 bits;
};
struct bf16x2 {
  u32 bits;
};
struct tf32 {
  u32 bits;
};

// The source line of an instruction: its last argument wherever it can go wrong.
using At = const simt::Source&;

template <class T, int N>
struct Vec {
  T x[N];
};

template <class T>
using Unsigned = std::make_unsigned_t<T>;

// An operand as the type of its instruction. A wider register gives its low bits.
template <class To, class From>
inline To as(From from) {
  if constexpr (std::is_same_v<To, From>) {
    return from;
  } else if constexpr (sizeof(To) == sizeof(From)) {
    return std::bit_cast<To>(from);
  } else if constexpr (std::is_integral_v<To>) {
    static_assert(std::is_integral_v<From> && sizeof(To) < sizeof(From));
    return static_cast<To>(from);
  } else {
    static_assert(std::is_integral_v<From> && sizeof(To) == 2 && sizeof(From) > 2);
    return std::bit_cast<To>(static_cast<u16>(from));
  }
}

// A result into its register. A wider register is filled with zeros, or with the sign of a signed type.
template <class Register, class V>
inline void set(Register& r, V value) {
  if constexpr (sizeof(Register) == sizeof(V)) {
    r = std::bit_cast<Register>(value);
  } else {
    static_assert(std::is_integral_v<Register>);
    if constexpr (std::is_integral_v<V>) {
      r = static_cast<Register>(value);
    } else {
      r = std::bit_cast<u16>(value);
    }
  }
}

}  // namespace ptx
