// Norm over heads with weight, skip and gate, backward: a work item is one head of a run of tokens. With p the sum
// before the gate,
//
//   dp = dy act(gate)        dgate = dy p act'(gate)        dskip = dp skip_weight        dn = dp weight
//   dh = (dn - mean(dn) - n mean(dn n)) / sqrt(var + eps), without mean(dn) in the norm that has no mean
//
// The runs' sums for the weights are added up in the order of the runs: a result does not depend on the number of
// threads.
#include "cpu/simd/norm.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {
namespace {

constexpr int64_t kRun = 64;        // tokens
constexpr int64_t kFeatures = 256;  // of a block that adds up

template <class T>
XLSTM_INLINE void add_to(T* sum, Vec<T> x, int64_t lanes) {
  store_n(sum, load_n(sum, lanes) + x, lanes);
}

// One row. sums (kNormSums, F) of its run, from its head on; dn (D).
template <class E, class T = ArithmeticOf<E>>
struct RowGrad {
  const NormBackwardParams<T>& p;
  const NormRow<E>& row;
  const E* dy;
  E *dh, *dgate, *dskip;
  T *sums, *dn;

  // dn, and its two means.
  XLSTM_INLINE_MEMBER void before_norm(T& mean, T& mean_n) const {
    const int64_t F = p.forward.shape.features();
    Vec<T> sum = splat<T>(0), sum_n = splat<T>(0);
    for_vectors<T>(row.dim, [&](int64_t j, int64_t lanes) {
      const Vec<T> n = row.n(j, lanes), dp = through_gate(n, j, lanes);
      if (p.sums[kWeightSum]) add_to(sums + kWeightSum * F + j, dp * n, lanes);
      if (p.sums[kBiasSum]) add_to(sums + kBiasSum * F + j, dp, lanes);
      if (p.sums[kSkipWeightSum]) add_to(sums + kSkipWeightSum * F + j, dp * load_elements(row.skip + j, lanes), lanes);
      if (dskip) store_elements(dskip + j, row.skip_weighted(dp, j, lanes), lanes);
      const Vec<T> grad = first_lanes<T>(row.weighted(dp, j, lanes), lanes);
      store_n(dn + j, grad, lanes);
      sum += grad, sum_n += grad * n;
    });
    mean = row.options.rms ? 0 : reduce_add<T>(sum) / static_cast<T>(row.dim);
    mean_n = reduce_add<T>(sum_n) / static_cast<T>(row.dim);
  }

  XLSTM_INLINE_MEMBER void through_norm(T mean, T mean_n) const {
    for_vectors<T>(row.dim, [&](int64_t j, int64_t lanes) {
      store_elements(dh + j, row.rstd * (load_n(dn + j, lanes) - mean - row.n(j, lanes) * mean_n), lanes);
    });
  }

 private:
  // dp, and dgate.
  XLSTM_INLINE_MEMBER Vec<T> through_gate(Vec<T> n, int64_t j, int64_t lanes) const {
    const Vec<T> grad = load_elements(dy + j, lanes);
    if (!row.gate) return grad;
    const Vec<T> gate = load_elements(row.gate + j, lanes), sig = sigmoid<T>(gate), rest = static_cast<T>(1) - sig;
    const Vec<T> slope = row.options.sigmoid ? sig * rest : sig + gate * sig * rest;
    store_elements(dgate + j, grad * row.before_gate(n, j, lanes) * slope, lanes);
    return grad * (row.options.sigmoid ? sig : gate * sig);
  }
};

// dn (D)
template <class E, class T = ArithmeticOf<E>>
void run_grad(const NormBackwardParams<T>& p, int64_t run, int64_t head, T* sums, T* dn) {
  const NormShape& s = p.forward.shape;
  for (int sum = 0; sum < kNormSums; ++sum) fill_row<T>(sums + sum * s.features(), 0, s.dim);
  for (int64_t token = run * kRun; token < min_of((run + 1) * kRun, s.tokens()); ++token) {
    const NormRow<E> row(p.forward, head, token);
    const auto at = [&](const AnyView& x) { return head_row<E>(x, s, head, token); };
    const RowGrad<E> grad{p, row, at(p.dy), at(p.dh), at(p.dgate), at(p.dskip), sums, dn};
    T mean, mean_n;
    grad.before_norm(mean, mean_n);
    grad.through_norm(mean, mean_n);
  }
}

template <class T>
void add_up(const NormBackwardParams<T>& p, const T* sums, int64_t runs, const Runtime& runtime) {
  const int64_t F = p.forward.shape.features(), blocks = ceil_div(F, kFeatures);
  runtime.parallel(kNormSums * blocks, 1, [&](int64_t item) {
    const int64_t which = item / blocks, from = item % blocks * kFeatures, count = min_of(kFeatures, F - from);
    if (!p.sums[which]) return;
    T* to = p.sums[which] + from;
    fill_row<T>(to, 0, count);
    for (int64_t run = 0; run < runs; ++run) {
      axpby_row<T>(to, 1, 1, sums + (run * kNormSums + which) * F + from, count);
    }
  });
}

}  // namespace

template <class T>
void norm_bwd(const NormBackwardParams<T>& p, const Runtime& runtime) {
  const NormShape& s = p.forward.shape;
  const int64_t runs = ceil_div(s.tokens(), kRun), F = s.features();
  T* sums = static_cast<T*>(runtime.scratch(0, static_cast<size_t>(runs * kNormSums * F) * sizeof(T)));
  with_elements_of<T>(p.dy.type, [&](auto element) {
    runtime.parallel(runs * s.heads, ceil_div(int64_t{1} << 8, s.dim), [&](int64_t item) {
      const int64_t run = item / s.heads, head = item % s.heads;
      T* dn = static_cast<T*>(runtime.scratch(1, static_cast<size_t>(s.dim) * sizeof(T)));
      run_grad<decltype(element)>(p, run, head, sums + run * kNormSums * F + head * s.dim, dn);
    });
  });
  add_up(p, sums, runs, runtime);
}

template void norm_bwd<float>(const NormBackwardParams<float>&, const Runtime&);
template void norm_bwd<double>(const NormBackwardParams<double>&, const Runtime&);

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
