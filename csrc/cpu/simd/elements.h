#pragma once
// Rows of elements of any type in vectors of the arithmetic: 16 bits are read and written as they lie in memory.
#if defined(__AVX2__)
#include <immintrin.h>
#endif

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

// GCC makes three instructions of a conversion between vectors where one is enough.
#if defined(__AVX512F__)

XLSTM_INLINE UnsignedVec<float> spread(HalfVecOf::type x) {
  return (UnsignedVec<float>)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)x);
}
XLSTM_INLINE HalfVecOf::type packed(UnsignedVec<float> x) {
  return (HalfVecOf::type)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)x);
}
XLSTM_INLINE Vec<float> widened(HalfVecOf::type x, Half) {
  return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, (__m256i)x);
}
XLSTM_INLINE HalfVecOf::type narrowed(Vec<float> x, Half) {
  return (HalfVecOf::type)_mm512_maskz_cvtps_ph(0xffff, (__m512)x, _MM_FROUND_TO_NEAREST_INT);
}

#elif defined(__AVX2__)

XLSTM_INLINE UnsignedVec<float> spread(HalfVecOf::type x) {
  return (UnsignedVec<float>)_mm256_cvtepu16_epi32((__m128i)x);
}
XLSTM_INLINE HalfVecOf::type packed(UnsignedVec<float> x) {
  const __m256i halves = _mm256_packus_epi32((__m256i)x, (__m256i)x);  // of each half of x
  return (HalfVecOf::type)_mm256_castsi256_si128(_mm256_permute4x64_epi64(halves, 0b1000));
}
XLSTM_INLINE Vec<float> widened(HalfVecOf::type x, Half) {
  return (Vec<float>)_mm256_cvtph_ps((__m128i)x);
}
XLSTM_INLINE HalfVecOf::type narrowed(Vec<float> x, Half) {
  return (HalfVecOf::type)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT);
}

#else

XLSTM_INLINE UnsignedVec<float> spread(HalfVecOf::type x) {
  return __builtin_convertvector(x, UnsignedVec<float>);
}
XLSTM_INLINE HalfVecOf::type packed(UnsignedVec<float> x) {
  return __builtin_convertvector(x, HalfVecOf::type);
}

// The exponent of a half is 15 more than it says, that of a float 127.
constexpr uint32_t kHalfBias = uint32_t{127 - 15} << 23, kHalfNormal = uint32_t{127 - 14} << 23;

XLSTM_INLINE Vec<float> widened(HalfVecOf::type half, Half) {
  const UnsignedVec<float> x = spread(half), sign = (x & 0x8000u) << 16, rest = (x & 0x7fffu) << 13;
  const UnsignedVec<float> normal = rest + kHalfBias, infinite = rest + 2 * kHalfBias;  // infinite: or NaN
  // The fraction of a denormal in that of the smallest normal number, from which that number is taken away.
  const UnsignedVec<float> small = rest + kHalfNormal, offset = small - rest;
  const UnsignedVec<float> denormal = bits_of((Vec<float>)small - (Vec<float>)offset);
  const UnsignedVec<float> finite = rest < (uint32_t{1} << 23) ? denormal : normal;
  return (Vec<float>)(sign | (rest >= (uint32_t{31} << 23) ? infinite : finite));
}
XLSTM_INLINE HalfVecOf::type narrowed(Vec<float> x, Half) {
  const UnsignedVec<float> sign = bits_of(x) & 0x80000000u, rest = bits_of(x) ^ sign;
  const UnsignedVec<float> normal = (rest - kHalfBias + 0xfffu + (rest >> 13 & 1u)) >> 13;
  // The last bit of a half denormal is that of a number which the sum with this one is rounded to.
  const UnsignedVec<float> zero = {}, offset = zero + (uint32_t{127 - 1} << 23);
  const UnsignedVec<float> denormal = bits_of((Vec<float>)rest + (Vec<float>)offset) - offset;
  const UnsignedVec<float> infinite = rest > (uint32_t{255} << 23) ? zero + 0x7e00u : zero + 0x7c00u;
  const UnsignedVec<float> finite = rest < kHalfNormal ? denormal : normal;
  return packed(sign >> 16 | (rest >= (uint32_t{127 + 16} << 23) ? infinite : finite));
}

#endif

XLSTM_INLINE Vec<float> widened(HalfVecOf::type x, Bf16) {
  return (Vec<float>)(spread(x) << 16);
}
XLSTM_INLINE HalfVecOf::type narrowed(Vec<float> x, Bf16) {
  const UnsignedVec<float> bits = bits_of(x), even = bits + 0x7fffu + (bits >> 16 & 1u);
  return packed((x != x ? bits | 0x400000u : even) >> 16);  // NaN keeps its payload's upper half
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
    return widened(raw, E{});
  }
}

template <class E>
XLSTM_INLINE void store_elements(E* p, Vec<ArithmeticOf<E>> x, int64_t n) {
  if constexpr (sizeof(E) > 2) {
    store_n(p, x, n);
  } else {
    const HalfVecOf::type raw = narrowed(x, E{});
    if (n >= kLanes<float>)
      *reinterpret_cast<HalfVecOf::unaligned*>(p) = raw;
    else
      for (int64_t j = 0; j < n; ++j) p[j].bits = raw[j];
  }
}

// The row of a view at one place, null where there is none.
template <class E>
E* row_of(const AnyView& x, int64_t b, int64_t h, int64_t t) {
  if (x.data == nullptr) return nullptr;
  return static_cast<E*>(const_cast<void*>(x.data)) + x.offset(b, h, t);
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

// The same for those that are computed in T.
template <class T, class F>
void with_elements_of(Type type, F f) {
  with_elements(type, [&](auto element) {
    if constexpr (std::is_same_v<ArithmeticOf<decltype(element)>, T>) f(element);
  });
}

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
