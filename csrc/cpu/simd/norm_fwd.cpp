// Norm over heads with weight, skip and gate, forward: a work item is the row of one head at one token, in the L1 cache
// while it is read three times.
#include "cpu/simd/norm.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {

namespace {

template <class E, class T = ArithmeticOf<E>>
void row_fwd(const NormForwardParams<T>& p, int64_t head, int64_t token) {
  const NormRow<E> row(p, head, token);
  E* y = head_row<E>(p.y, p.shape, head, token);
  for_vectors<T>(row.dim, [&](int64_t j, int64_t lanes) {
    Vec<T> out = row.before_gate(row.n(j, lanes), j, lanes);
    if (row.gate) {
      const Vec<T> gate = load_elements(row.gate + j, lanes), sig = sigmoid<T>(gate);
      out *= p.options.sigmoid ? sig : gate * sig;
    }
    store_elements(y + j, out, lanes);
  });
}

}  // namespace

template <class T>
void norm_fwd(const NormForwardParams<T>& p, const Runtime& runtime) {
  const NormShape& s = p.shape;
  with_elements_of<T>(p.h.type, [&](auto element) {
    runtime.parallel(s.tokens() * s.heads, ceil_div(int64_t{1} << 14, s.dim),
                     [&](int64_t item) { row_fwd<decltype(element)>(p, item % s.heads, item / s.heads); });
  });
}

template void norm_fwd<float>(const NormForwardParams<float>&, const Runtime&);
template void norm_fwd<double>(const NormForwardParams<double>&, const Runtime&);

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
