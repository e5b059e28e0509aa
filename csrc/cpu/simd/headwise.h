#pragma once
// What forward and backward of the maps of small blocks share: rows of a few tokens, mapped or multiplied together.
//
// Columns of a map lie as rows do, W_i[n O + o] = weight[n, o, i], so that features of many blocks share a vector:
//
//   y = sum_i W_i spread_i(x)        dW_i = sum over tokens of dy spread_i(x)
//
// spread_i gives every feature of a block the block's i-th feature. Where a vector holds whole square blocks, it is a
// shuffle within a register.
#include <type_traits>
#include <utility>

#include "cpu/simd/rows.h"
#include "cpu/simd/table.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {

constexpr int64_t kHeadwiseRun = 64;  // tokens
constexpr int kHeadwiseTokens = 4;    // that share a load of the weights

// Blocks of `in` features mapped to blocks of `out`.
struct BlockSizes {
  int64_t blocks, in, out;

  int64_t width() const { return blocks * out; }
};

template <class T>
struct TokenRows {
  T* row[kHeadwiseTokens];
};

// Those of tokens [token, token + count).
template <class T>
TokenRows<T> token_rows(const View<T>& x, const HeadwiseShape& shape, int64_t token, int count) {
  TokenRows<T> rows{};
  for (int t = 0; t < count; ++t) rows.row[t] = x.at((token + t) / shape.seqlen, 0, (token + t) % shape.seqlen);
  return rows;
}

// Lane l of the result is lane l / kBlock kBlock + kFeature of x.
template <int kBlock, int kFeature, class V, int... kLane>
XLSTM_INLINE V spread_lanes(V x, std::integer_sequence<int, kLane...>) {
#if __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(x, x, (kLane / kBlock * kBlock + kFeature)...);
#else
  using Index = std::conditional_t<sizeof(x[0]) == 4, IntVec<float>, IntVec<double>>;
  return __builtin_shuffle(x, Index{(kLane / kBlock * kBlock + kFeature)...});
#endif
}
template <class T, int kBlock, int kFeature>
XLSTM_INLINE Vec<T> spread(Vec<T> x) {
  return spread_lanes<kBlock, kFeature>(x, std::make_integer_sequence<int, kLanes<T>>{});
}

// f(std::integral_constant<int, i>) for every feature of a block.
template <class F, int... kFeature>
XLSTM_INLINE void each_feature(F f, std::integer_sequence<int, kFeature...>) {
  (f(std::integral_constant<int, kFeature>{}), ...);
}
template <int kBlock, class F>
XLSTM_INLINE void each_feature(F f) {
  each_feature(f, std::make_integer_sequence<int, kBlock>{});
}

// f(std::integral_constant<int, block>): of square blocks that divide a vector, else 0.
template <class T, class F>
void with_block(const BlockSizes& s, F f) {
  const auto try_block = [&](auto block) {
    if constexpr (kLanes<T> % decltype(block)::value == 0) {
      if (s.in != decltype(block)::value || s.out != s.in) return false;
      f(block);
      return true;
    }
    return false;
  };
  if (try_block(std::integral_constant<int, 4>{}) || try_block(std::integral_constant<int, 2>{}) ||
      try_block(std::integral_constant<int, 8>{}) || try_block(std::integral_constant<int, 16>{}))
    return;
  f(std::integral_constant<int, 0>{});
}

// to = start + sum_i W_i spread_i(from), in `count` rows; start (width), or null: what the rows hold.
template <class T, int kBlock>
XLSTM_INLINE void map_rows(const TokenRows<T>& to, const T* start, const T* columns, const TokenRows<const T>& from,
                           int count, const BlockSizes& s) {
  const int64_t width = s.width();
  if constexpr (kBlock > 0) {
    for_vectors<T>(width, [&](int64_t j, int64_t lanes) {
      Vec<T> w[kBlock];
      for (int i = 0; i < kBlock; ++i) w[i] = load_n(columns + i * width + j, lanes);
      for (int t = 0; t < count; ++t) {
        const Vec<T> x = load_n(from.row[t] + j, lanes);
        Vec<T> sum = load_n((start ? start : to.row[t]) + j, lanes);
        each_feature<kBlock>([&](auto i) { sum += w[i] * spread<T, kBlock, i>(x); });
        store_n(to.row[t] + j, sum, lanes);
      }
    });
    return;
  }
  for (int t = 0; t < count; ++t) {
    if (start) scale_row<T>(to.row[t], 1, start, width);
    for (int64_t n = 0; n < s.blocks; ++n) {
      T* block = to.row[t] + n * s.out;
      for (int64_t i = 0; i < s.in; ++i) {
        const T x = from.row[t][n * s.in + i], *w = columns + i * width + n * s.out;
        for (int64_t o = 0; o < s.out; ++o) block[o] += w[o] * x;
      }
    }
  }
}

// sums_i += dy spread_i(x), and the last row of sums += dy, over `count` rows. sums (in + 1, width).
template <class T, int kBlock>
XLSTM_INLINE void add_products(T* sums, const TokenRows<const T>& dy, const TokenRows<const T>& x, int count,
                               const BlockSizes& s) {
  const int64_t width = s.width();
  if constexpr (kBlock > 0) {
    for_vectors<T>(width, [&](int64_t j, int64_t lanes) {
      Vec<T> sum[kBlock + 1];
      for (int i = 0; i <= kBlock; ++i) sum[i] = load_n(sums + i * width + j, lanes);
      for (int t = 0; t < count; ++t) {
        const Vec<T> grad = load_n(dy.row[t] + j, lanes), input = load_n(x.row[t] + j, lanes);
        each_feature<kBlock>([&](auto i) { sum[i] += grad * spread<T, kBlock, i>(input); });
        sum[kBlock] += grad;
      }
      for (int i = 0; i <= kBlock; ++i) store_n(sums + i * width + j, sum[i], lanes);
    });
    return;
  }
  for (int t = 0; t < count; ++t) {
    axpby_row<T>(sums + s.in * width, 1, 1, dy.row[t], width);
    for (int64_t n = 0; n < s.blocks; ++n) {
      const T* grad = dy.row[t] + n * s.out;
      for (int64_t i = 0; i < s.in; ++i) {
        const T input = x.row[t][n * s.in + i];
        T* sum = sums + i * width + n * s.out;
        for (int64_t o = 0; o < s.out; ++o) sum[o] += grad[o] * input;
      }
    }
  }
}

// Runs of tokens are worth a thread by so many.
inline int64_t headwise_grain(const HeadwiseShape& s, int64_t passes) {
  const int64_t tokens = max_of(1, min_of(kHeadwiseRun, s.tokens()));
  return ceil_div(int64_t{1} << 16, passes * tokens * s.maps * s.blocks * s.in * s.out[0]);
}

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
