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
struct AccurateMath {
  using Number = A;

  XLSTM_DEVICE static Logistic<A> logistic(A x) {
    const A e = std::exp(-std::fabs(x));  // has no overflow and serves both signs
    return {(x < 0 ? e : A{1}) / (1 + e), std::log1p(e)};
  }
  XLSTM_DEVICE static A sigmoid(A x) {
    const A e = std::exp(-std::fabs(x));
    return (x < 0 ? e : A{1}) / (1 + e);
  }
  XLSTM_DEVICE static A tanh(A x) { return std::tanh(x); }
};

// No branch, no division. Absolute errors of a few 2^-23; tanh of bfloat16 has a relative one of 2^-11.
template <class T>
struct FastMath {
  using Number = float;
  static constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

  XLSTM_DEVICE static Logistic<float> logistic(float x) {
    const float e = device::exp2_approx(-kLog2E * std::fabs(x)), r = device::reciprocal_approx(1 + e);
    return {(x < 0 ? e : 1.f) * r, kLn2 * device::log2_approx(1 + e)};
  }
  XLSTM_DEVICE static float sigmoid(float x) { return device::reciprocal_approx(1 + device::exp2_approx(-kLog2E * x)); }
  // bfloat16 goes down to 1e-38, where an absolute error would be everything; float16 ends at 6e-8.
  XLSTM_DEVICE static float tanh(float x) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>) return device::tanh_approx(x);
    return 1 - 2 * device::reciprocal_approx(1 + device::exp2_approx(2 * kLog2E * x));
  }
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

}  // namespace xlstm::cuda
