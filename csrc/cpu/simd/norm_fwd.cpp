// Norm over heads with weight, skip and gate, forward: a work item is the row of one head at one token, in the L1 cache
// while it is read three times.
#include "cpu/simd/norm.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {

template <class T>
void norm_fwd(const NormForwardParams<T>& p, const Runtime& runtime) {
  const NormShape& s = p.shape;
  runtime.parallel(s.tokens() * s.heads, ceil_div(int64_t{1} << 14, s.dim), [&](int64_t item) {
    const int64_t token = item / s.heads, head = item % s.heads;
    const NormRow<T> row(p, head, token);
    T* y = p.y.at(token / s.seqlen, head, token % s.seqlen);
    for_vectors<T>(s.dim, [&](int64_t j, int64_t lanes) {
      Vec<T> out = row.before_gate(row.n(j, lanes), j, lanes);
      if (row.gate) {
        const Vec<T> gate = load_n(row.gate + j, lanes), sig = sigmoid<T>(gate);
        out *= p.options.sigmoid ? sig : gate * sig;
      }
      store_n(y + j, out, lanes);
    });
  });
}

template void norm_fwd<float>(const NormForwardParams<float>&, const Runtime&);
template void norm_fwd<double>(const NormForwardParams<double>&, const Runtime&);

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
