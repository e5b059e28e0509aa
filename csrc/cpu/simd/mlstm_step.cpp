// mLSTM decode step. First the gates, n and the denominators of every (batch row, head); then one pass over C, which is
// cut into column blocks so that few heads still use all threads. In place or not, C is read and written once.
#include <cmath>

#include "core/gates.h"
#include "cpu/simd/math.h"
#include "cpu/simd/rows.h"
#include "cpu/simd/table.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {
namespace {

constexpr int64_t kBlockVecs = 4;  // vectors across a column block of C

template <class T>
struct TokenFactors {
  T forget, input, out;  // C <- forget C + input k v^T;  h = out (q C)
};

struct Position {
  int64_t batch, head, slot;
};

template <class T>
Position position_of(const MlstmStepParams<T>& p, int64_t item) {
  const int64_t b = item / p.shape.num_heads;
  return {b, item % p.shape.num_heads, p.slots ? p.slots[b] : b};
}

// Advances n and m and leaves the factors of each token.
template <class T>
void advance_normaliser(const MlstmStepParams<T>& p, int64_t item, TokenFactors<T>* factors) {
  const auto [b, h, slot] = position_of(p, item);
  const int64_t dqk = p.shape.head_dim_qk;
  const T* n = p.state.n + slot * p.state.n_batch + h * p.state.n_head;
  T* n_next = p.next.n + slot * p.next.n_batch + h * p.next.n_head;
  double m = p.state.m[slot * p.state.m_batch + h * p.state.m_head];
  for (int64_t t = 0; t < p.shape.seqlen; ++t) {
    const double i = *p.i.at(b, h, t), f = *p.f.at(b, h, t);
    const double log_f = xlstm::log_sigmoid(f);
    double forget, input;
    if (p.options.sigmoid_gate) {
      forget = xlstm::sigmoid(f);
      input = xlstm::sigmoid(i);
    } else {
      m = m < kEmptyLog ? kEmptyLog : m;
      double next = i > log_f + m || i != i ? i : log_f + m;  // NaN stays
      next = next < kEmptyLog ? kEmptyLog : next;
      forget = std::exp(log_f + m - next);
      input = std::exp(i - next);
      m = next;
    }
    const T* k = p.k.at(b, h, t);
    const T F = static_cast<T>(forget), I = static_cast<T>(input), scale = static_cast<T>(p.options.scale);
    for_vectors<T>(dqk, [&](int64_t a, int64_t lanes) {
      store_n(n_next + a, F * load_n((t == 0 ? n : n_next) + a, lanes) + I * load_n(k + a, lanes), lanes);
    });
    const double r = scale * dot(p.q.at(b, h, t), n_next, dqk);
    factors[t] = {F, I, static_cast<T>(scale / denominator(p.options, r, denominator_floor(p.options, m)))};
  }
  p.next.m[slot * p.next.m_batch + h * p.next.m_head] = static_cast<T>(m);
}

// One token: columns [j, j + width) of C and h, width at most kBlockVecs vectors.
template <class T>
void update_one_token(const MlstmStepParams<T>& p, const Position& at, const TokenFactors<T>& factor, const T* C,
                      T* C_next, int64_t j, int64_t width) {
  const T *q = p.q.at(at.batch, at.head, 0), *k = p.k.at(at.batch, at.head, 0), *v = p.v.at(at.batch, at.head, 0) + j;
  Vec<T> value[kBlockVecs], sum[kBlockVecs];
  XLSTM_UNROLL
  for (int x = 0; x < kBlockVecs; ++x) {
    value[x] = load_n(v + x * kLanes<T>, width - x * kLanes<T>);
    sum[x] = splat<T>(0);
  }
  for (int64_t a = 0; a < p.shape.head_dim_qk; ++a) {
    const T *row = C + a * p.state.C_row + j, input = factor.input * k[a];
    T* next = C_next + a * p.next.C_row + j;
    XLSTM_UNROLL
    for (int x = 0; x < kBlockVecs; ++x) {
      const int64_t lanes = width - x * kLanes<T>;
      if (lanes <= 0) continue;
      const Vec<T> c = factor.forget * load_n(row + x * kLanes<T>, lanes) + input * value[x];
      store_n(next + x * kLanes<T>, c, lanes);
      sum[x] += q[a] * c;
    }
  }
  T* h = p.h.at(at.batch, at.head, 0) + j;
  XLSTM_UNROLL
  for (int x = 0; x < kBlockVecs; ++x) {
    if (width > x * kLanes<T>) store_n(h + x * kLanes<T>, factor.out * sum[x], width - x * kLanes<T>);
  }
}

// Several tokens: one vector of columns at a time, all tokens while that vector of a row of C is in a register.
template <class T>
void update_tokens(const MlstmStepParams<T>& p, const Position& at, const TokenFactors<T>* factors, const T* C,
                   T* C_next, int64_t j, int64_t width) {
  const int64_t tokens = p.shape.seqlen;
  for_vectors<T>(width, [&](int64_t x, int64_t lanes) {
    Vec<T> sum[kMaxStepTokens] = {}, value[kMaxStepTokens];
    for (int64_t t = 0; t < tokens; ++t) {
      value[t] = factors[t].input * load_n(p.v.at(at.batch, at.head, t) + j + x, lanes);
    }
    for (int64_t a = 0; a < p.shape.head_dim_qk; ++a) {
      Vec<T> c = load_n(C + a * p.state.C_row + j + x, lanes);
      for (int64_t t = 0; t < tokens; ++t) {
        c = factors[t].forget * c + p.k.at(at.batch, at.head, t)[a] * value[t];
        sum[t] += p.q.at(at.batch, at.head, t)[a] * c;
      }
      store_n(C_next + a * p.next.C_row + j + x, c, lanes);
    }
    for (int64_t t = 0; t < tokens; ++t) {
      store_n(p.h.at(at.batch, at.head, t) + j + x, factors[t].out * sum[t], lanes);
    }
  });
}

}  // namespace

template <class T>
void mlstm_step(const MlstmStepParams<T>& p, const Runtime& runtime) {
  const int64_t items = p.shape.batch * p.shape.num_heads, tokens = p.shape.seqlen;
  const int64_t dqk = p.shape.head_dim_qk, dv = p.shape.head_dim_v, width = kBlockVecs * kLanes<T>;
  if (items == 0) return;
  auto* factors =
      static_cast<TokenFactors<T>*>(runtime.scratch(0, static_cast<size_t>(items * tokens) * sizeof(TokenFactors<T>)));
  runtime.parallel(items, ceil_div(int64_t{1} << 14, tokens * dqk),
                   [&](int64_t item) { advance_normaliser(p, item, factors + item * tokens); });
  const int64_t blocks = ceil_div(dv, width);
  runtime.parallel(items * blocks, ceil_div(int64_t{1} << 15, tokens * dqk * min_of(dv, width)), [&](int64_t task) {
    const int64_t item = task / blocks, j = task % blocks * width;
    const Position at = position_of(p, item);
    const T* C = p.state.C + at.slot * p.state.C_batch + at.head * p.state.C_head;
    T* C_next = p.next.C + at.slot * p.next.C_batch + at.head * p.next.C_head;
    if (tokens == 1)
      update_one_token(p, at, factors[item], C, C_next, j, min_of(width, dv - j));
    else
      update_tokens(p, at, factors + item * tokens, C, C_next, j, min_of(width, dv - j));
  });
}

template void mlstm_step<float>(const MlstmStepParams<float>&, const Runtime&);
template void mlstm_step<double>(const MlstmStepParams<double>&, const Runtime&);

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
