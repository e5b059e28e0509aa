#pragma once
// Vector exponentials and gate functions, accurate to a few units in the last place of T.
#include <type_traits>

#include "cpu/simd/vec.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {

template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float round_magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  static constexpr float ln2_hi = 0.693359375f, ln2_lo = -2.12194440e-4f;
  static constexpr float smallest = -87.3f;  // exp below this is a denormal: returned as 0
  static constexpr int mantissa_bits = 23, one = 0x3f800000;
  static constexpr int taylor_terms = 7, atanh_terms = 7;
};
template <>
struct ExpConstants<double> {
  static constexpr double round_magic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double ln2_hi = 6.93147180369123816490e-01, ln2_lo = 1.90821492927058770002e-10;
  static constexpr double smallest = -708.3;
  static constexpr int mantissa_bits = 52;
  static constexpr int64_t one = 0x3ff0000000000000;
  static constexpr int taylor_terms = 13, atanh_terms = 16;
};

template <class T>
struct InverseFactorials {
  T of[16];
  constexpr InverseFactorials() : of{} {
    double value = 1;
    for (int k = 0; k < 16; ++k) {
      value /= k > 1 ? k : 1;
      of[k] = static_cast<T>(value);
    }
  }
};
template <class T>
constexpr InverseFactorials<T> kInverseFactorial;

template <class T>
XLSTM_INLINE Vec<T> select(IntVec<T> mask, Vec<T> yes, Vec<T> no) {
  return mask ? yes : no;
}

template <class T>
XLSTM_INLINE Vec<T> abs(Vec<T> x) {
  return select<T>(x < 0, -x, x);
}

template <class T>
XLSTM_INLINE Vec<T> max(Vec<T> a, Vec<T> b) {
  return select<T>(a > b, a, b);
}

// max(x, low) that keeps NaN.
template <class T>
XLSTM_INLINE Vec<T> at_least(Vec<T> x, T low) {
  return select<T>(x < low, splat(low), x);
}

// a / b for 1 <= b <= 3. A division of 16 floats takes as long as some 16 multiplications: with AVX-512 an
// approximation of 1 / b and one Newton step, to the last bit or its neighbour.
template <class T>
XLSTM_INLINE Vec<T> quotient(Vec<T> a, Vec<T> b) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) {
    const Vec<T> r = __builtin_ia32_rcp14ps512_mask(b, Vec<T>{}, -1), q = a * r;
    return q + r * (a - b * q);
  }
#endif
  return a / b;
}

// x = n ln 2 + r with |r| <= ln 2 / 2: returns 2^n and exp(r) - 1. For -700 < x < 700 or so.
template <class T>
struct ExpParts {
  Vec<T> power, rest;
};

template <class T>
XLSTM_INLINE ExpParts<T> exp_parts(Vec<T> x) {
  using K = ExpConstants<T>;
  Vec<T> shifted = x * static_cast<T>(1.4426950408889634) + K::round_magic;
  Vec<T> n = shifted - K::round_magic;
  Vec<T> r = x - n * K::ln2_hi - n * K::ln2_lo;
  Vec<T> p = splat<T>(0);
  XLSTM_UNROLL
  for (int k = K::taylor_terms; k >= 1; --k) p = p * r + kInverseFactorial<T>.of[k];
  // A cast between vectors of one size keeps the bits: the low bits of `shifted` hold n.
  UnsignedVec<T> bits = ((UnsignedVec<T>)shifted << K::mantissa_bits) + K::one;
  return {(Vec<T>)bits, p * r};
}

// exp(x) for x <= 0; -inf gives 0, NaN stays NaN.
template <class T>
XLSTM_INLINE Vec<T> exp_nonpositive(Vec<T> x) {
  const T low = ExpConstants<T>::smallest;
  ExpParts<T> e = exp_parts<T>(at_least<T>(x, low));
  return select<T>(x < low, splat<T>(0), e.power + e.power * e.rest);
}

// log(1 + y) for 0 <= y <= 1, as 2 atanh(y / (2 + y)).
template <class T>
XLSTM_INLINE Vec<T> log1p_unit(Vec<T> y) {
  Vec<T> s = quotient<T>(y, y + static_cast<T>(2)), s2 = s * s, p = splat<T>(0);
  XLSTM_UNROLL
  for (int k = ExpConstants<T>::atanh_terms; k >= 1; --k) p = (p + static_cast<T>(1) / (2 * k + 1)) * s2;
  return static_cast<T>(2) * (s + s * p);
}

template <class T>
XLSTM_INLINE Vec<T> log_sigmoid(Vec<T> x) {
  return select<T>(x < 0, x, splat<T>(0)) - log1p_unit<T>(exp_nonpositive<T>(-abs<T>(x)));
}

template <class T>
XLSTM_INLINE Vec<T> sigmoid(Vec<T> x) {
  Vec<T> e = exp_nonpositive<T>(-abs<T>(x));
  return quotient<T>(select<T>(x < 0, e, splat<T>(1)), e + static_cast<T>(1));
}

template <class T>
XLSTM_INLINE Vec<T> tanh(Vec<T> x) {
  const T low = static_cast<T>(-80);  // tanh(40) is 1 in float and double
  Vec<T> y = static_cast<T>(-2) * abs<T>(x);
  ExpParts<T> e = exp_parts<T>(at_least<T>(y, low));
  Vec<T> expm1 = e.power * e.rest + (e.power - static_cast<T>(1));
  Vec<T> t = quotient<T>(-expm1, expm1 + static_cast<T>(2));
  return select<T>(x < 0, -t, t);
}

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
