#pragma once
// What the passes of the recurrent family share: choice of the cell, rows of states, and the cut into work items.
#include "core/recurrent.h"
#include "core/runtime.h"
#include "cpu/simd/gemm.h"
#include "cpu/simd/recurrent_cells.h"
#include "cpu/simd/rows.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {

// Calls f with the cell's functor.
template <class T, class F>
XLSTM_INLINE void with_cell(Cell cell, F f) {
  switch (cell) {
    case Cell::lstm:
      return f(LstmCell<T>{});
    case Cell::slstm:
      return f(SlstmCell<T, false>{});
    case Cell::slstm_exp:
      return f(SlstmCell<T, true>{});
  }
}

XLSTM_INLINE int64_t padded_row(int64_t D) {
  return ceil_div(D, 16) * 16;
}

// Packs the matrix of one gate and head as the right operand of h R^T (forward), K = in and N = out.
template <class T>
XLSTM_INLINE void pack_forward(const WeightView<const T>& R, int64_t gate, int64_t head, int64_t D, T* packed) {
  if (R.in == 1)
    pack_cols(R.at(gate, head), R.out, D, D, packed);
  else
    pack_rows(R.at(gate, head), R.in, D, D, packed);
}

// The same for draw R (backward), K = out and N = in.
template <class T>
XLSTM_INLINE void pack_backward(const WeightView<const T>& R, int64_t gate, int64_t head, int64_t D, T* packed) {
  if (R.in == 1)
    pack_rows(R.at(gate, head), R.out, D, D, packed);
  else
    pack_cols(R.at(gate, head), R.in, D, D, packed);
}

// One head and a range of batch rows: the time loops of different items are independent.
struct BatchTile {
  int64_t head, first, rows;
};

struct BatchTiles {
  int64_t per_head, size, batch, num_heads;

  BatchTiles(const RecurrentShape& shape, int num_threads) : batch(shape.batch), num_heads(shape.num_heads) {
    per_head = max_of(1, min_of(batch, ceil_div(num_threads, num_heads)));
    size = ceil_div(batch, per_head);
  }
  int64_t count() const { return batch > 0 ? num_heads * per_head : 0; }
  BatchTile at(int64_t item) const {
    const int64_t first = item % per_head * size;
    return {item / per_head, first, max_of(0, min_of(size, batch - first))};
  }
};

template <class T>
XLSTM_INLINE PublicState<T> load_public(const RecurrentState<const T>& s, int64_t offset, int64_t lanes) {
  PublicState<T> out{};
  if (s.c) out.c = load_n(s.c + offset, lanes);
  if (s.n) out.n = load_n(s.n + offset, lanes);
  if (s.m) out.m = load_n(s.m + offset, lanes);
  return out;
}

template <class T>
XLSTM_INLINE void store_public(const RecurrentState<T>& s, const PublicState<T>& x, int64_t offset, int64_t lanes) {
  store_n(s.c + offset, x.c, lanes);
  if (s.n) store_n(s.n + offset, x.n, lanes);
  if (s.m) store_n(s.m + offset, x.m, lanes);
}

// x with `bits` fewer bits of mantissa, to nearest even.
XLSTM_INLINE float drop_bits(float x, int bits) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  u += (uint32_t{1} << (bits - 1)) - 1 + ((u >> bits) & 1);
  u &= ~uint32_t{0} << bits;
  float y;
  std::memcpy(&y, &u, 4);
  return x == x ? y : x;
}

// |h| <= 1, so overflow needs no care; below 2^-14 float16 has steps of 2^-24, as float has near 0.75.
XLSTM_INLINE float round_value(float x, Rounding rounding) {
  if (rounding == Rounding::bfloat16) return drop_bits(x, 16);
  return std::fabs(x) < 0x1p-14f ? (x + 0.75f) - 0.75f : drop_bits(x, 13);
}

template <class T>
XLSTM_INLINE void round_row(T* row, int64_t n, Rounding rounding) {
  if (rounding == Rounding::none) return;
  for (int64_t j = 0; j < n; ++j) row[j] = round_value(static_cast<float>(row[j]), rounding);
}

XLSTM_INLINE int64_t length_of(const int64_t* lengths, int64_t b, int64_t seqlen) {
  return lengths ? lengths[b] : seqlen;
}

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
