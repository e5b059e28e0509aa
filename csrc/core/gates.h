#pragma once
// Scalar gate functions. The one place that says how a gate is computed; the vector versions follow it.
#include <cmath>

#if defined(__CUDACC__)
#define XLSTM_HD __host__ __device__ __forceinline__
#else
#define XLSTM_HD static inline
#endif

namespace xlstm {

constexpr double kEmptyLog = -1e30;   // log scale of an empty state: finite, so that no (-inf) - (-inf) is ever formed
constexpr double kHardForget = -1e9;  // a log forget gate below this empties the state exactly

XLSTM_HD double log_sigmoid(double x) {
  return (x < 0 ? x : 0.0) - log1p(exp(-fabs(x)));
}
XLSTM_HD double sigmoid(double x) {
  const double e = exp(-fabs(x));  // has no overflow and serves both signs
  return (x >= 0 ? 1.0 : e) / (1.0 + e);
}

}  // namespace xlstm
