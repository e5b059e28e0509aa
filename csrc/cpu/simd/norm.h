#pragma once
// What forward and backward of the norm over heads share: the row of one head at one token.
#include <cmath>

#include "cpu/simd/math.h"
#include "cpu/simd/rows.h"
#include "cpu/simd/table.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {

// Null where there is none.
template <class T>
struct NormRow {
  const NormOptions& options;
  int64_t dim;
  const T *h, *weight, *bias, *gate, *skip, *skip_weight;
  T mean = 0, rstd = 0;

  NormRow(const NormForwardParams<T>& p, int64_t head, int64_t token)
      : options(p.options),
        dim(p.shape.dim),
        weight(of_head(p.weight, head)),
        bias(of_head(p.bias, head)),
        skip_weight(of_head(p.skip_weight, head)) {
    const int64_t b = token / p.shape.seqlen, t = token % p.shape.seqlen;
    h = p.h.at(b, head, t);
    gate = p.gate ? p.gate.at(b, head, t) : nullptr;
    skip = p.skip ? p.skip.at(b, head, t) : nullptr;
    normalise();
  }

  XLSTM_INLINE_MEMBER Vec<T> n(int64_t j, int64_t lanes) const { return (load_n(h + j, lanes) - mean) * rstd; }
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
    if (skip) p += skip_weighted(load_n(skip + j, lanes), j, lanes);
    return p;
  }

 private:
  const T* of_head(const T* x, int64_t head) const { return x ? x + head * dim : nullptr; }

  // Two passes: the squares of h itself would cancel where the mean is large.
  void normalise() {
    const T count = static_cast<T>(dim);
    Vec<T> sum = splat<T>(0), squares = splat<T>(0);
    if (!options.rms) for_vectors<T>(dim, [&](int64_t j, int64_t lanes) { sum += load_n(h + j, lanes); });
    mean = reduce_add<T>(sum) / count;
    for_vectors<T>(dim, [&](int64_t j, int64_t lanes) {
      const Vec<T> x = first_lanes<T>(load_n(h + j, lanes) - mean, lanes);
      squares += x * x;
    });
    rstd = 1 / std::sqrt(reduce_add<T>(squares) / count + static_cast<T>(options.eps));
  }
};

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
