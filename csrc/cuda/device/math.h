#pragma once
// Approximate functions of the special function unit; subnormal inputs and results are zero. The host's definitions are
// the accurate functions, so that tolerances, not bits, compare the two.
#include "cuda/device/platform.h"

namespace xlstm::device {

#if XLSTM_SIMT
inline float flush_subnormal(float x) {
  return fabsf(x) < 0x1p-126f ? copysignf(0.f, x) : x;
}
#endif

// 2^x, error 2 ulp.
XLSTM_DEVICE float exp2_approx(float x) {
#if XLSTM_SIMT
  return flush_subnormal(exp2f(x));
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

XLSTM_DEVICE float log2_approx(float x) {
#if XLSTM_SIMT
  return log2f(flush_subnormal(x));
#else
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

XLSTM_DEVICE float reciprocal_approx(float x) {
#if XLSTM_SIMT
  return flush_subnormal(1.f / flush_subnormal(x));
#else
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

XLSTM_DEVICE float rsqrt_approx(float x) {
#if XLSTM_SIMT
  return 1.f / sqrtf(flush_subnormal(x));
#else
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// Relative error 2^-11.
XLSTM_DEVICE float tanh_approx(float x) {
#if XLSTM_SIMT
  return tanhf(x);
#else
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

}  // namespace xlstm::device
