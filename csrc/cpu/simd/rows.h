#pragma once
// Loops over one contiguous row of n elements.
#include "cpu/simd/vec.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {

// Calls f(offset, lanes) for each vector of a row; lanes < kLanes only in the last one.
template <class T, class F>
XLSTM_INLINE void for_vectors(int64_t n, F f) {
  int64_t j = 0;
  for (; j + kLanes<T> <= n; j += kLanes<T>) f(j, static_cast<int64_t>(kLanes<T>));
  if (j < n) f(j, n - j);
}

template <class T>
XLSTM_INLINE T dot(const T* a, const T* b, int64_t n) {
  Vec<T> sum = splat<T>(0);
  for_vectors<T>(n, [&](int64_t j, int64_t lanes) { sum += load_n(a + j, lanes) * load_n(b + j, lanes); });
  return reduce_add<T>(sum);
}

// y = alpha x
template <class T>
XLSTM_INLINE void scale_row(T* y, T alpha, const T* x, int64_t n) {
  for_vectors<T>(n, [&](int64_t j, int64_t lanes) { store_n(y + j, alpha * load_n(x + j, lanes), lanes); });
}

// y = alpha y + beta x
template <class T>
XLSTM_INLINE void axpby_row(T* y, T alpha, T beta, const T* x, int64_t n) {
  for_vectors<T>(n, [&](int64_t j, int64_t lanes) {
    store_n(y + j, alpha * load_n(y + j, lanes) + beta * load_n(x + j, lanes), lanes);
  });
}

// y = alpha x + sum_t weights[t] rows[t], `count` rows. They are summed first, in four sums that hide the latency of an
// addition: y is rounded once, not once a row. x is not read where alpha is 0.
template <class T>
XLSTM_INLINE void add_rows(T* y, T alpha, const T* x, const T* weights, const T* rows, int64_t stride, int64_t count,
                           int64_t n) {
  for_vectors<T>(n, [&](int64_t j, int64_t lanes) {
    Vec<T> sums[4] = {};
    int64_t t = 0;
    for (; t + 4 <= count; t += 4) {
      XLSTM_UNROLL
      for (int c = 0; c < 4; ++c) sums[c] += weights[t + c] * load_n(rows + (t + c) * stride + j, lanes);
    }
    for (; t < count; ++t) sums[0] += weights[t] * load_n(rows + t * stride + j, lanes);
    const Vec<T> sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    store_n(y + j, alpha == 0 ? sum : alpha * load_n(x + j, lanes) + sum, lanes);
  });
}

template <class T>
XLSTM_INLINE void fill_row(T* y, T value, int64_t n) {
  for_vectors<T>(n, [&](int64_t j, int64_t lanes) { store_n(y + j, splat(value), lanes); });
}

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
