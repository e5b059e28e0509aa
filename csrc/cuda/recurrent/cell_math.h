#pragma once
// The functions that the cells are made of (cells.h): accurate ones, and for 16-bit data those of the special function
// unit, whose errors are small beside the rounding of h (docs/kernels/recurrent.md has both).
#include <cmath>

#include "cuda/device/device.h"

namespace xlstm::cuda {

template <class A>
struct Logistic {
  A sigmoid;  // 1 / (1 + exp(-x))
  A log1p;    // log(1 + exp(-|x|))
};

template <class A>
struct Tanh {
  A value, slope;  // slope: 1 - value^2
};

template <class A>
struct AccurateMath {
  using Number = A;

  XLSTM_DEVICE static Logistic<A> logistic(A x) {
    const A e = std::exp(-std::fabs(x));  // has no overflow and serves both signs
    return {(x < 0 ? e : A{1}) / (1 + e), std::log1p(e)};
  }
  XLSTM_DEVICE static A sigmoid(A x) { return logistic(x).sigmoid; }
  XLSTM_DEVICE static A tanh(A x) { return std::tanh(x); }
  XLSTM_DEVICE static Tanh<A> tanh_and_slope(A x) {
    const A t = std::tanh(x);
    return {t, 1 - t * t};
  }
};

// No branch, no division. Absolute errors of a few 2^-23; tanh of bfloat16 has a relative one of 2^-11, and near zero
// that of float16 one of 2^-15.
template <class T>
struct FastMath {
  using Number = float;
  static constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

  XLSTM_DEVICE static Logistic<float> logistic(float x) {
    const float e = device::exp2_approx(-kLog2E * std::fabs(x)), r = device::reciprocal_approx(1 + e);
    return {(x < 0 ? e : 1.f) * r, kLn2 * device::log2_approx(1 + e)};
  }
  XLSTM_DEVICE static float sigmoid(float x) { return device::reciprocal_approx(1 + device::exp2_approx(-kLog2E * x)); }
  XLSTM_DEVICE static float tanh(float x) {
    if constexpr (kShortTanh) return device::tanh_approx(x);
    return right_near_zero(x, 1 - 2 * device::reciprocal_approx(1 + device::exp2_approx(2 * kLog2E * x)));
  }
  // The slope is 4 e / (1 + e)^2 with e = exp(-2 |x|): 1 - tanh^2 would have no digits left where tanh is nearly 1.
  XLSTM_DEVICE static Tanh<float> tanh_and_slope(float x) {
    const float e4 = device::exp2_approx(2 - 2 * kLog2E * std::fabs(x));
    const float r = device::reciprocal_approx(1 + 0.25f * e4), q = e4 * r;
    if constexpr (kShortTanh) return {device::tanh_approx(x), q * r};
    return {right_near_zero(x, std::copysign(1 - 0.5f * q, x)), q * r};
  }

 private:
  // One instruction. float16 has three bits more.
  static constexpr bool kShortTanh = std::is_same_v<T, __nv_bfloat16>;
  // An absolute error would be everything there. x itself is right to 2^-15.
  XLSTM_DEVICE static float right_near_zero(float x, float tanh) { return std::fabs(x) < 0x1p-7f ? x : tanh; }
};

// Of a kernel for tensors of T.
template <class T>
struct CellMathOf {
  using Type = FastMath<T>;
};
template <>
struct CellMathOf<float> {
  using Type = AccurateMath<float>;
};
template <>
struct CellMathOf<double> {
  using Type = AccurateMath<double>;
};
template <class T>
using CellMath = typename CellMathOf<T>::Type;

template <class M, class A = typename M::Number>
XLSTM_DEVICE A log_sigmoid(A x) {
  return (x < 0 ? x : A{0}) - M::logistic(x).log1p;
}

// Of data of T: in 16 bits by the special function unit alone, whose errors are small beside the rounding of y.
template <class T, class A>
XLSTM_DEVICE A data_sigmoid(A x) {
  if constexpr (sizeof(T) == 2) return FastMath<T>::sigmoid(x);
  if constexpr (sizeof(A) == 8) return 1 / (1 + std::exp(-x));
  return device::reciprocal_approx(1 + std::exp(-x));  // a division may call a function, and spills around it
}

}  // namespace xlstm::cuda
