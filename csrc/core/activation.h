#pragma once
// The activations of a gate and their slopes: the one place that says how they are computed, for every backend.
//
//   silu        g s(g)                          s(u) = 1 / (1 + exp(-u))
//   gelu        g P(g)                          P: the distribution function of the normal distribution
//   gelu_tanh   g s(2 w)                        w = sqrt(2 / pi) (g + 0.044715 g^3); s(2 w) = (1 + tanh(w)) / 2
//   sigmoid     s(g)
//   relu, relu_squared                          max(g, 0) and its square
//   soft_cap    cap tanh(g / cap)
//
// M is the arithmetic of a backend: Number, a scalar or a vector, of Scalar elements; splat, abs, exp of numbers <= 0,
// inverse of numbers >= 1, tanh, and where(mask, yes, no). An infinite g gives the limits: a factor of 0 stays 0.
#include "core/gated.h"

#if defined(__CUDACC__)
#define XLSTM_ACTIVATION __host__ __device__ __forceinline__
#else
#define XLSTM_ACTIVATION inline __attribute__((always_inline))
#endif

namespace xlstm {

template <class M>
struct Activated {
  typename M::Number value, slope;
};

// factor times x, but 0 where factor is 0 and x infinite.
template <class M, class V = typename M::Number>
XLSTM_ACTIVATION V limited(V factor, V x) {
  return M::where(factor == 0, factor, factor * x);
}

// s(u), and s'(u) = e / (1 + e)^2 with e = exp(-|u|): s (1 - s) would have no digits left where s is nearly 1.
template <class M, class V = typename M::Number>
XLSTM_ACTIVATION Activated<M> logistic(V u) {
  using T = typename M::Scalar;
  const V e = M::exp_nonpositive(-M::abs(u)), r = M::inverse(e + T(1)), er = e * r;
  return {M::where(u < 0, er, r), er * r};
}

// c0 + c1 t + c2 t^2 ..
template <class V, class T>
XLSTM_ACTIVATION V horner(V t, T c0, T c1) {
  return t * c1 + c0;
}
template <class V, class T, class... Rest>
XLSTM_ACTIVATION V horner(V t, T c0, T c1, T c2, Rest... rest) {
  return horner(t, c1, c2, rest...) * t + c0;
}

// P(-a) exp(a^2 / 2) for a >= 0, as q R(q) with q = 1 / (1 + a / k): both go to 0 as q does. R is interpolated at
// Chebyshev's nodes of those a whose exp(-a^2 / 2) is a normal number, after Shepherd and Laframboise (Mathematics of
// Computation 36, 1981). Relative errors before rounding: float 1.1e-8, double 3.0e-16.
template <class T>
constexpr T kTailScale = sizeof(T) == 4 ? T(1) / 4 : T(1) / 6;  // 1 / k

template <class T, class V>
XLSTM_ACTIVATION V tail_polynomial(V q) {
  if constexpr (sizeof(T) == 4) {
    return q * horner<V, T>(q * 2.60150385f - 1.60150373f,  // from -1 to 1
                            0.2297545224f, 0.1575843245f, 0.07929452509f, 0.0278755445f, 0.005733536091f,
                            7.067523256e-05f, -2.914314682e-04f, -3.822839062e-05f, 1.380824233e-05f, 2.716827339e-06f);
  } else {
    return q * horner<V, T>(q * 2.3174603174603177 - 1.3174603174603174,  // from -1 to 1
                            0.14753724578319635, 0.12704128502107623, 0.09602773123057647, 0.06359791609703855,
                            0.03668124562678085, 0.01820871878158126, 0.007616534313296959, 0.0025792733365438236,
                            0.0006460601575349223, 8.645121905417477e-05, -1.2176006517556961e-05,
                            -9.304843498011853e-06, -1.5168995706346873e-06, 3.595879199821084e-07,
                            1.9098480139131213e-07, 2.273321259091177e-09, -1.6071865892294616e-08,
                            -1.902870671468951e-09, 1.2099928620897159e-09, 1.705806731187128e-10,
                            -6.897297048103831e-11);
  }
}

// P(g), and the density of the normal distribution.
template <class M, class V = typename M::Number>
XLSTM_ACTIVATION Activated<M> normal(V g) {
  using T = typename M::Scalar;
  V a = M::abs(g);
  const V e = M::exp_nonpositive(a * a * T(-0.5));
  a = M::where(a > 64, M::splat(64), a);  // e is 0 there
  const V tail = e * tail_polynomial<T>(M::inverse(a * kTailScale<T> + T(1)));
  return {M::where(g < 0, tail, T(1) - tail), e * T(0.3989422804014327)};
}

// Of soft_cap. The inverse is made on the host: in a kernel a division may be a call.
template <class T>
struct Cap {
  T cap, inverse;

  XLSTM_ACTIVATION explicit Cap(const GatedForwardParams& p)
      : cap(static_cast<T>(p.cap)), inverse(static_cast<T>(p.inverse_cap)) {}
};

template <Activation kActivation, class M, class V = typename M::Number>
XLSTM_ACTIVATION Activated<M> activated(V g, Cap<typename M::Scalar> cap) {
  using T = typename M::Scalar;
  if constexpr (kActivation == Activation::silu) {
    const Activated<M> s = logistic<M>(g);
    return {limited<M>(s.value, g), s.value + limited<M>(s.slope, g)};
  } else if constexpr (kActivation == Activation::gelu) {
    const Activated<M> p = normal<M>(g);
    return {limited<M>(p.value, g), p.value + limited<M>(p.slope, g)};
  } else if constexpr (kActivation == Activation::gelu_tanh) {
    constexpr T twice = T(1.5957691216057308), cubic = T(0.044715);  // 2 sqrt(2 / pi)
    const V square = g * g;
    const Activated<M> s = logistic<M>(g * (square * cubic + T(1)) * twice);
    const V slope = limited<M>(s.slope, g * (square * (3 * cubic) + T(1)) * twice);
    return {limited<M>(s.value, g), s.value + slope};
  } else if constexpr (kActivation == Activation::sigmoid) {
    return logistic<M>(g);
  } else if constexpr (kActivation == Activation::relu) {
    return {M::where(g <= 0, M::splat(0), g), M::where(g <= 0, M::splat(0), M::splat(1))};
  } else if constexpr (kActivation == Activation::relu_squared) {
    const V r = M::where(g <= 0, M::splat(0), g);
    return {r * r, r * T(2)};
  } else {
    const V u = g * cap.inverse;
    return {M::tanh(u) * cap.cap, logistic<M>(u * T(2)).slope * T(4)};
  }
}

// slope times the gradient of the activation. Where a relu is 0 it is 0, whatever that gradient is, as torch has it.
template <Activation kActivation, class M, class V = typename M::Number>
XLSTM_ACTIVATION V through_slope(V g, V slope, V grad) {
  constexpr bool relu = kActivation == Activation::relu || kActivation == Activation::relu_squared;
  if constexpr (relu) return M::where(g <= 0, M::splat(0), slope * grad);
  return slope * grad;
}

// f.operator()<activation>()
template <class F>
XLSTM_ACTIVATION void with_activation(Activation activation, F f) {
  switch (activation) {
    case Activation::silu:
      return f.template operator()<Activation::silu>();
    case Activation::gelu:
      return f.template operator()<Activation::gelu>();
    case Activation::gelu_tanh:
      return f.template operator()<Activation::gelu_tanh>();
    case Activation::sigmoid:
      return f.template operator()<Activation::sigmoid>();
    case Activation::relu:
      return f.template operator()<Activation::relu>();
    case Activation::relu_squared:
      return f.template operator()<Activation::relu_squared>();
    case Activation::soft_cap:
      return f.template operator()<Activation::soft_cap>();
  }
  XLSTM_UNREACHABLE;
}

}  // namespace xlstm
