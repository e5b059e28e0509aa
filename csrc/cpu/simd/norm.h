#pragma once
// What forward and backward of the norm over heads share: the row of one head at one token.
#include <cmath>

#include "cpu/simd/elements.h"
#include "cpu/simd/math.h"
#include "cpu/simd/rows.h"
#include "cpu/simd/table.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {

// Null where there is none.
template <class E>
E* head_row(const AnyView& x, const NormShape& shape, int64_t head, int64_t token) {
  return row_of<E>(x, token / shape.seqlen, head, token % shape.seqlen);
}

// Of elements of E, computed in T. Null where there is none.
template <class E, class T = ArithmeticOf<E>>
struct NormRow {
  const NormOptions& options;
  int64_t dim;
  const E *h, *gate, *skip;
  const T *weight, *bias, *skip_weight;
  T mean = 0, rstd = 0;

  NormRow(const NormForwardParams<T>& p, int64_t head, int64_t token)
      : options(p.options),
        dim(p.shape.dim),
        h(head_row<const E>(p.h, p.shape, head, token)),
        gate(head_row<const E>(p.gate, p.shape, head, token)),
        skip(head_row<const E>(p.skip, p.shape, head, token)),
        weight(of_head(p.weight, head)),
        bias(of_head(p.bias, head)),
        skip_weight(of_head(p.skip_weight, head)) {
    normalise();
  }

  XLSTM_INLINE_MEMBER Vec<T> n(int64_t j, int64_t lanes) const { return (load_elements(h + j, lanes) - mean) * rstd; }
  // dp -> dn
  XLSTM_INLINE_MEMBER Vec<T> weighted(Vec<T> x, int64_t j, int64_t lanes) const {
    return weight ? x * (load_n(weight + j, lanes) + static_cast<T>(options.weight_offset)) : x;
  }
  XLSTM_INLINE_MEMBER Vec<T> skip_weighted(Vec<T> x, int64_t j, int64_t lanes) const {
    return skip_weight ? x * load_n(skip_weight + j, lanes) : x;
  }
  XLSTM_INLINE_MEMBER Vec<T> before_gate(Vec<T> n, int64_t j, int64_t lanes) const {
    Vec<T> p = weighted(n, j, lanes);
    if (bias) p += load_n(bias + j, lanes);
    if (skip) p += skip_weighted(load_elements(skip + j, lanes), j, lanes);
    return p;
  }

 private:
  const T* of_head(const T* x, int64_t head) const { return x ? x + head * dim : nullptr; }

  // Two passes: the squares of h itself would cancel where the mean is large.
  void normalise() {
    const T count = static_cast<T>(dim);
    Vec<T> sum = splat<T>(0), squares = splat<T>(0);
    if (!options.rms) for_vectors<T>(dim, [&](int64_t j, int64_t lanes) { sum += load_elements(h + j, lanes); });
    mean = reduce_add<T>(sum) / count;
    for_vectors<T>(dim, [&](int64_t j, int64_t lanes) {
      const Vec<T> x = first_lanes<T>(load_elements(h + j, lanes) - mean, lanes);
      squares += x * x;
    });
    rstd = 1 / std::sqrt(reduce_add<T>(squares) / count + static_cast<T>(options.eps));
  }
};

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
