#pragma once
// Rows of elements of any type in vectors of the arithmetic: 16 bits are read and written as they lie in memory.
#include <type_traits>

#include "core/view.h"
#include "cpu/simd/vec.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {

struct Half {
  uint16_t bits;
};

// The type of the arithmetic on elements of E.
template <class E>
using ArithmeticOf = std::conditional_t<sizeof(E) == 2, float, E>;

XLSTM_INLINE UnsignedVec<float> bits_of(Vec<float> x) {
  return (UnsignedVec<float>)x;
}

XLSTM_INLINE Vec<float> widened(UnsignedVec<float> x, Bf16) {
  return (Vec<float>)(x << 16);
}
XLSTM_INLINE UnsignedVec<float> narrowed(Vec<float> x, Bf16) {
  const UnsignedVec<float> bits = bits_of(x), even = bits + 0x7fffu + (bits >> 16 & 1u);
  return (x != x ? bits | 0x400000u : even) >> 16;  // NaN keeps its payload's upper half
}

// The exponent of a half is 15 more than it says, that of a float 127.
constexpr uint32_t kHalfBias = uint32_t{127 - 15} << 23, kHalfNormal = uint32_t{127 - 14} << 23;

XLSTM_INLINE Vec<float> widened(UnsignedVec<float> x, Half) {
  const UnsignedVec<float> sign = (x & 0x8000u) << 16, rest = (x & 0x7fffu) << 13;
  const UnsignedVec<float> normal = rest + kHalfBias, infinite = rest + 2 * kHalfBias;  // infinite: or NaN
  // The fraction of a denormal in that of the smallest normal number, from which that number is taken away.
  const UnsignedVec<float> small = rest + kHalfNormal, offset = small - rest;
  const UnsignedVec<float> denormal = bits_of((Vec<float>)small - (Vec<float>)offset);
  const UnsignedVec<float> finite = rest < (uint32_t{1} << 23) ? denormal : normal;
  return (Vec<float>)(sign | (rest >= (uint32_t{31} << 23) ? infinite : finite));
}
XLSTM_INLINE UnsignedVec<float> narrowed(Vec<float> x, Half) {
  const UnsignedVec<float> sign = bits_of(x) & 0x80000000u, rest = bits_of(x) ^ sign;
  const UnsignedVec<float> normal = (rest - kHalfBias + 0xfffu + (rest >> 13 & 1u)) >> 13;
  // The last bit of a half denormal is that of a number which the sum with this one is rounded to.
  const UnsignedVec<float> zero = {}, offset = zero + (uint32_t{127 - 1} << 23);
  const UnsignedVec<float> denormal = bits_of((Vec<float>)rest + (Vec<float>)offset) - offset;
  const UnsignedVec<float> infinite = rest > (uint32_t{255} << 23) ? zero + 0x7e00u : zero + 0x7c00u;
  const UnsignedVec<float> finite = rest < kHalfNormal ? denormal : normal;
  return sign >> 16 | (rest >= (uint32_t{127 + 16} << 23) ? infinite : finite);
}

// The first n lanes; the others read as zero.
template <class E>
XLSTM_INLINE Vec<ArithmeticOf<E>> load_elements(const E* p, int64_t n) {
  if constexpr (sizeof(E) > 2) {
    return load_n(p, n);
  } else {
    typename HalfVecOf::type raw{};
    if (n >= kLanes<float>)
      raw = *reinterpret_cast<const HalfVecOf::unaligned*>(p);
    else
      for (int64_t j = 0; j < n; ++j) raw[j] = p[j].bits;
    return widened(__builtin_convertvector(raw, UnsignedVec<float>), E{});
  }
}

template <class E>
XLSTM_INLINE void store_elements(E* p, Vec<ArithmeticOf<E>> x, int64_t n) {
  if constexpr (sizeof(E) > 2) {
    store_n(p, x, n);
  } else {
    const auto raw = __builtin_convertvector(narrowed(x, E{}), HalfVecOf::type);
    if (n >= kLanes<float>)
      *reinterpret_cast<HalfVecOf::unaligned*>(p) = raw;
    else
      for (int64_t j = 0; j < n; ++j) p[j].bits = raw[j];
  }
}

// f(E{}) for the type of elements.
template <class F>
void with_elements(Type type, F f) {
  switch (type) {
    case Type::bf16:
      return f(Bf16{});
    case Type::f16:
      return f(Half{});
    case Type::f32:
      return f(float{});
    case Type::f64:
      return f(double{});
  }
  XLSTM_UNREACHABLE;
}

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
