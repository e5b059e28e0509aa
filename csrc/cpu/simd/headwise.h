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

#include "cpu/simd/elements.h"
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

// f(std::integral_constant<int, n>, token) for each n tokens of [first, end) from `token` on, n: kHeadwiseTokens, or 1
// at the end.
template <class F>
XLSTM_INLINE void for_tokens(int64_t first, int64_t end, F f) {
  int64_t token = first;
  for (; token + kHeadwiseTokens <= end; token += kHeadwiseTokens) {
    f(std::integral_constant<int, kHeadwiseTokens>{}, token);
  }
  for (; token < end; ++token) f(std::integral_constant<int, 1>{}, token);
}

template <class E, int kCount>
struct TokenRows {
  E* row[kCount];

  // Those of tokens [token, token + kCount).
  TokenRows(const AnyView& x, const HeadwiseShape& shape, int64_t token) {
    for (int t = 0; t < kCount; ++t) row[t] = row_of<E>(x, (token + t) / shape.seqlen, 0, (token + t) % shape.seqlen);
  }
};

// Lane l of the result is lane l / kBlock kBlock + kFeature of x.
template <class T, int kBlock, int kFeature, int... kLane>
XLSTM_INLINE Vec<T> spread_lanes(Vec<T> x, std::integer_sequence<int, kLane...>) {
  return shuffled<T, (kLane / kBlock * kBlock + kFeature)...>(x);
}
template <class T, int kBlock, int kFeature>
XLSTM_INLINE Vec<T> spread(Vec<T> x) {
  return spread_lanes<T, kBlock, kFeature>(x, std::make_integer_sequence<int, kLanes<T>>{});
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

// One of the maps whose results are added up: its columns, and the rows that it maps.
template <class E, int kCount, class T = ArithmeticOf<E>>
struct BlockMap {
  const T* columns;
  TokenRows<const E, kCount> from;
  BlockSizes sizes;
};

// Blocks of any size go by plain loops, over the values of so many of them.
constexpr int64_t kPieceBlocks = 16;
template <class T>
using PieceValues = T[kPieceBlocks * kHeadwiseBlock];

// to = from, n elements of any two types that are computed in T.
template <class T, class To, class From>
XLSTM_INLINE void copy_row(To* to, const From* from, int64_t n) {
  for_vectors<T>(n, [&](int64_t j, int64_t lanes) { store_elements(to + j, load_elements(from + j, lanes), lanes); });
}

// f(first block, number of blocks) of each piece.
template <class F>
XLSTM_INLINE void for_pieces(int64_t blocks, F f) {
  for (int64_t n = 0; n < blocks; n += kPieceBlocks) f(n, min_of(kPieceBlocks, blocks - n));
}

// map_rows for token t of the maps.
template <class E, int kCount, class T = ArithmeticOf<E>>
void map_row_by_loops(E* to, const T* start, const BlockMap<E, kCount>* maps, int count, int t) {
  const int64_t out = maps[0].sizes.out, width = maps[0].sizes.width();
  for_pieces(maps[0].sizes.blocks, [&](int64_t first, int64_t blocks) {
    PieceValues<T> x, y;
    copy_row<T>(y, start + first * out, blocks * out);
    for (int m = 0; m < count; ++m) {
      const int64_t in = maps[m].sizes.in;
      copy_row<T>(x, maps[m].from.row[t] + first * in, blocks * in);
      for (int64_t n = 0; n < blocks; ++n) {
        for (int64_t i = 0; i < in; ++i) {
          const T value = x[n * in + i], *w = maps[m].columns + i * width + (first + n) * out;
          for (int64_t o = 0; o < out; ++o) y[n * out + o] += w[o] * value;
        }
      }
    }
    copy_row<T>(to + first * out, y, blocks * out);
  });
}

// add_products for one token.
template <class E, class T = ArithmeticOf<E>>
void add_products_by_loops(T* sums, const E* dy, const E* x, const BlockSizes& s) {
  const int64_t width = s.width();
  for_pieces(s.blocks, [&](int64_t first, int64_t blocks) {
    PieceValues<T> grad, input;
    copy_row<T>(grad, dy + first * s.out, blocks * s.out);
    copy_row<T>(input, x + first * s.in, blocks * s.in);
    axpby_row<T>(sums + s.in * width + first * s.out, 1, 1, grad, blocks * s.out);
    for (int64_t n = 0; n < blocks; ++n) {
      for (int64_t i = 0; i < s.in; ++i) {
        T* sum = sums + i * width + (first + n) * s.out;
        for (int64_t o = 0; o < s.out; ++o) sum[o] += grad[n * s.out + o] * input[n * s.in + i];
      }
    }
  });
}

// to = start + sum_i W_i spread_i(from), of `count` maps to blocks of the same features. start (width)
template <int kBlock, class E, int kCount, class T = ArithmeticOf<E>>
XLSTM_INLINE void map_rows(const TokenRows<E, kCount>& to, const T* start, const BlockMap<E, kCount>* maps, int count) {
  const int64_t width = maps[0].sizes.width();
  if constexpr (kBlock > 0) {
    for_vectors<T>(width, [&](int64_t j, int64_t lanes) {
      Vec<T> sum[kCount];
      for (int t = 0; t < kCount; ++t) sum[t] = load_n(start + j, lanes);
      for (int m = 0; m < count; ++m) {
        Vec<T> w[kBlock];
        for (int i = 0; i < kBlock; ++i) w[i] = load_n(maps[m].columns + i * width + j, lanes);
        for (int t = 0; t < kCount; ++t) {
          const Vec<T> x = load_elements(maps[m].from.row[t] + j, lanes);
          each_feature<kBlock>([&](auto i) { sum[t] += w[i] * spread<T, kBlock, i>(x); });
        }
      }
      for (int t = 0; t < kCount; ++t) store_elements(to.row[t] + j, sum[t], lanes);
    });
    return;
  }
  for (int t = 0; t < kCount; ++t) map_row_by_loops(to.row[t], start, maps, count, t);
}

// sums_i += dy spread_i(x), and the last row of sums += dy, over the tokens. sums (in + 1, width).
template <int kBlock, class E, int kCount, class T = ArithmeticOf<E>>
XLSTM_INLINE void add_products(T* sums, const TokenRows<const E, kCount>& dy, const TokenRows<const E, kCount>& x,
                               const BlockSizes& s) {
  const int64_t width = s.width();
  if constexpr (kBlock > 0) {
    for_vectors<T>(width, [&](int64_t j, int64_t lanes) {
      Vec<T> sum[kBlock + 1];
      for (int i = 0; i <= kBlock; ++i) sum[i] = load_n(sums + i * width + j, lanes);
      XLSTM_ROLLED
      for (int t = 0; t < kCount; ++t) {
        const Vec<T> grad = load_elements(dy.row[t] + j, lanes), input = load_elements(x.row[t] + j, lanes);
        each_feature<kBlock>([&](auto i) { sum[i] += grad * spread<T, kBlock, i>(input); });
        sum[kBlock] += grad;
      }
      for (int i = 0; i <= kBlock; ++i) store_n(sums + i * width + j, sum[i], lanes);
    });
    return;
  }
  for (int t = 0; t < kCount; ++t) add_products_by_loops(sums, dy.row[t], x.row[t], s);
}

// Runs of tokens are worth a thread by so many.
inline int64_t headwise_grain(const HeadwiseShape& s, int64_t passes) {
  const int64_t tokens = max_of(1, min_of(kHeadwiseRun, s.tokens()));
  return ceil_div(int64_t{1} << 16, passes * tokens * s.maps * s.blocks * s.in * s.out[0]);
}

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
