#pragma once
// Rows that met inf or NaN, computed once more.
#include "cuda/mlstm_chunkwise/outputs_block.h"

namespace xlstm::cuda {
namespace {

// In the products of a tile a row multiplies tokens that it may not see by zero, which makes NaN of inf and NaN. Where
// an output is not finite, its row is computed again, by a warp, from the tokens that the row sees alone: slow, rare,
// and without the matrix units.
template <Product P, OutputKind O>
struct Again {
  using A = Accumulator<P>;
  static constexpr int kLanes = 32;

  const MlstmOutputsParams<A>& p;
  const OutputRows<A>& s;
  int row;  // of these

  XLSTM_DEVICE int64_t lane() const { return threadIdx.x % kLanes; }
  XLSTM_DEVICE int index() const { return s.at.first_row + row; }
  XLSTM_DEVICE int64_t offset(const AnyView& x, int token) const {
    return x.offset(s.at.batch, s.at.head, s.at.begin + token);
  }

  XLSTM_DEVICE A score(int other) const {
    A sum = 0;
#pragma unroll 1
    for (int64_t a = lane(); a < depth_of<O>(p.shape); a += kLanes) {
      sum += load_any<A>(p.X.data, p.X.type, offset(p.X, index()) + a) *
             load_any<A>(p.Y.data, p.Y.type, offset(p.Y, other) + a);
    }
    for (int step = kLanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    return sum;
  }

  XLSTM_DEVICE Token<A> token(int at, bool query) const {
    const A scale = static_cast<A>(p.options.scale);
    const int64_t t = s.at.token(p.shape, at);
    Token<A> token = {(query ? p.gates.z : p.gates.y)[t], at, 0, 0, 0};
    if (!query) return token;
    token.start = p.gates.start[t] - s.at.begin;
    if (O != OutputKind::h) token.iota = scale * p.iota[t];
    if (kUsesRho<O>) token.rho = scale * p.rho[t];
    return token;
  }

  XLSTM_DEVICE A of_state(int64_t column) const {
    const A weight = s.rows.of_state[row];
    if (!s.has_state || weight == 0) return 0;
    A sum = 0;
#pragma unroll 1
    for (int64_t a = 0; a < depth_of<O>(p.shape); ++a) {
      const int64_t at = kStateTransposed<O> ? a * p.shape.head_dim_v + column : column * p.shape.head_dim_v + a;
      sum += load_any<A>(p.X.data, p.X.type, offset(p.X, index()) + a) *
             load_any<A>(p.states, element_type(P), s.at.slot * p.shape.head_dim_qk * p.shape.head_dim_v + at);
    }
    return weight * sum * (O == OutputKind::dq ? static_cast<A>(p.options.scale) * s.rows.iota[row] : A{1});
  }

  // P of the row and a token that it sees.
  XLSTM_DEVICE A weight(int other) const {
    constexpr bool kQueries = kRowsAreQueries<O>;
    const A x = score(other);
    const Token<A> key = token(kQueries ? other : index(), false), query = token(kQueries ? index() : other, true);
    return weighted<O, P == Product::tf32x3>(x, key, query, sees(query, key));
  }
  XLSTM_DEVICE int start_of(int query) const { return max(0, p.gates.start[s.at.token(p.shape, query)] - s.at.begin); }

  // One column per lane, before `finish`. What is NaN by the row's own token or the state stays NaN.
  XLSTM_DEVICE A sum_at(int64_t column) const {
    constexpr bool kQueries = kRowsAreQueries<O>;
    const bool inside = column < columns_of<O>(p.shape);
    const auto term = [&](int t) {
      const A x = weight(t);
      return inside ? x * load_any<A>(p.Z.data, p.Z.type, offset(p.Z, t) + column) : A{0};
    };
    // The row's own token, then the others that it sees: in one loop, so that the code of a term is there once.
    A sum = 0;
#pragma unroll 1
    for (int t = index(), next = kQueries ? start_of(t) : t + 1;; t = next++) {
      sum += term(t);
      if (t == index()) {
        sum += inside ? of_state(column) : A{0};
        if (__all_sync(~0u, !inside || sum != sum)) break;
      }
      const bool more = kQueries ? next < index() : next < s.at.tokens && start_of(next) <= index();
      if (!more) break;
    }
    return sum;
  }

  // Writes the row's columns of this block; returns their products with the factor, summed over the warp.
  XLSTM_DEVICE A write(const Finish<A>& finish, const A* n, int columns, bool sum_up) const {
    A dot = 0;
#pragma unroll 1
    for (int64_t c = lane(); c - lane() < columns; c += kLanes) {
      const int64_t column = s.at.first_column + c;
      A x = finish.scale * sum_at(column);
      if (c >= columns) continue;
      if (kUsesRho<O> && n) x += times_weight(n[c], finish.of_n);
      if (sum_up) dot += x * load_any<A>(p.factor.data, p.factor.type, offset(p.factor, index()) + column);
      store_any(const_cast<void*>(p.out.data), p.out.type, offset(p.out, index()) + column, x);
    }
    for (int step = kLanes / 2; step > 0; step /= 2) dot += __shfl_xor_sync(~0u, dot, step);
    return dot;
  }
};

}  // namespace
}  // namespace xlstm::cuda
