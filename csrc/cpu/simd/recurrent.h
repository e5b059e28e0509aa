#pragma once
// What the passes of the recurrent family share: rows of states, and the cut into work items.
#include <new>

#include "core/recurrent.h"
#include "core/runtime.h"
#include "cpu/simd/gemm.h"
#include "cpu/simd/recurrent_cells.h"
#include "cpu/simd/rows.h"
#include "cpu/team.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {

XLSTM_INLINE int64_t padded_row(int64_t D) {
  return ceil_div(D, 16) * 16;
}

// Packs the matrix of one gate and head (into W: T, or Bf16 where R has no more digits) as the right operand of h R^T
// (forward), K = in and N = out.
template <class T, class W>
XLSTM_INLINE void pack_forward(const WeightView<const T>& R, int64_t gate, int64_t head, int64_t D, W* packed) {
  if (R.in == 1)
    pack_cols(R.at(gate, head), R.out, D, D, packed);
  else
    pack_rows(R.at(gate, head), R.in, D, D, packed);
}

// The same for draw R (backward), K = out and N = in.
template <class T, class W>
XLSTM_INLINE void pack_backward(const WeightView<const T>& R, int64_t gate, int64_t head, int64_t D, W* packed) {
  if (R.in == 1)
    pack_rows(R.at(gate, head), R.out, D, D, packed);
  else
    pack_cols(R.at(gate, head), R.in, D, D, packed);
}

// The work of one thread in the time loop: hidden units of one head, for a range of batch rows. carried: how many of
// the head's parts these units are.
struct Tile {
  int64_t head, first_row, rows, first_unit, units, carried;

  // f(first unit, lanes) for each vector of these units.
  template <class T, class F>
  XLSTM_INLINE_MEMBER void for_units(F f) const {
    for_vectors<T>(units, [&](int64_t j, int64_t lanes) { f(first_unit + j, lanes); });
  }
  // Of a row of this tile in a state (B, H, D).
  int64_t state_offset(const RecurrentShape& s, int64_t row) const {
    return ((first_row + row) * s.num_heads + head) * s.head_dim;
  }
};

// The cut of the work: heads first. Where there are fewer heads than threads, the batch rows of a head, as long as each
// thread has several of them for every weight it reads. Where there are still threads left, the hidden units in `parts`
// (each thread then reads only its part of R), and at last single rows.
template <class T>
class Cut {
 public:
  Cut(const RecurrentShape& shape, int num_threads, bool may_meet)
      : s_(shape), panels_(ceil_div(s_.head_dim, kPanel<T>)) {
    const int64_t spare = max_of(1, num_threads / s_.num_heads), weights = kGates * s_.head_dim * s_.head_dim;
    const bool cached = weights * static_cast<int64_t>(sizeof(T)) <= kCachedWeights;
    const int64_t tiles = cached ? max_of(1, min_of(spare, s_.batch / kRowsPerWeight)) : 1;
    const int64_t step = weights * max_of(1, s_.batch / tiles);  // multiplications
    parts = may_meet ? max_of(1, min_of(min_of(spare / tiles, panels_), step / kWorkPerPart)) : 1;
    row_tiles = max_of(1, min_of(s_.batch, ceil_div(num_threads, s_.num_heads * parts)));
    tile_rows = ceil_div(s_.batch, row_tiles);
  }

  int64_t parts, row_tiles, tile_rows;  // of one head

  // Recurrences that are independent of each other, and threads' shares of them.
  int64_t recurrences() const { return s_.batch > 0 ? s_.num_heads * row_tiles : 0; }

  // Shares [begin, end) of one recurrence.
  Tile at(int64_t recurrence, int64_t begin, int64_t end) const {
    const int64_t first_row = recurrence % row_tiles * tile_rows;
    const int64_t from = begin * panels_ / parts * kPanel<T>, to = end * panels_ / parts * kPanel<T>;
    return {recurrence / row_tiles,         first_row,  max_of(0, min_of(tile_rows, s_.batch - first_row)), from,
            min_of(to, s_.head_dim) - from, end - begin};
  }

 private:
  static constexpr int64_t kWorkPerPart = int64_t{1} << 16;  // some microseconds: well above the cost of a meeting
  // Measured, docs/kernels/recurrent.md. Bytes of R that a core reads about as fast as it multiplies that many rows.
  static constexpr int64_t kRowsPerWeight = 4, kCachedWeights = int64_t{4} << 20;
  const RecurrentShape s_;
  const int64_t panels_;
};

// bfloat16 weights stay in 16 bits where reading R is what a step costs: few rows, and more weights than a cache of the
// second level holds. Elsewhere the conversions cost more than the reading.
XLSTM_INLINE bool half_weights(const RecurrentShape& shape, Type type) {
  constexpr int64_t kRows = 4, kWeights = 3 << 19;  // measured, docs/kernels/recurrent.md
  return type == Type::bf16 && shape.batch <= kRows && kGates * shape.head_dim * shape.head_dim > kWeights;
}

// The packed weights of one head, gate by gate.
template <class T, class W>
struct PackedR {
  const W* data;
  int64_t D;

  // Of one gate, the columns from `unit` (the start of a panel) on.
  PackedB<T, W> at(int64_t gate, int64_t unit) const { return {data + gate * packed_size<T>(D, D) + unit * D, D}; }
};

// Packs R, cuts the work and runs Pass(p, tile, packed R of its head, buffers, meeting) for each thread's share of each
// recurrence. Pass::Buffers(arena, rows, padded row) places the working memory of one recurrence. All memory is taken
// before the first step: a thread that failed to get some later would let the others wait for ever.
template <class T, class W, class Pass, class Params>
XLSTM_INLINE void run_recurrences(const Params& p, const Runtime& runtime) {
  using Buffers = typename Pass::Buffers;
  const RecurrentShape& shape = p.shape;
  const int64_t D = shape.head_dim, size = packed_size<T>(D, D), matrices = shape.num_heads * kGates;
  const TeamPermit permit;
  const Cut<T> cut(shape, runtime.num_threads(), permit.granted());
  const int64_t recurrences = cut.recurrences();
  if (recurrences == 0) return;  // an empty batch may come with weights of any size
  Arena one;
  Buffers(one, cut.tile_rows, padded_row(D));
  W* R = nullptr;
  Meeting* meetings = nullptr;
  char* buffers = nullptr;
  const auto place = [&](Arena arena) {
    R = arena.take<W>(matrices * size);
    meetings = arena.take<Meeting>(recurrences);
    buffers = arena.take<char>(recurrences * static_cast<int64_t>(one.used()));
    return arena.used();
  };
  place(Arena(runtime.scratch(0, place(Arena()))));
  for (int64_t n = 0; n < recurrences; ++n) new (meetings + n) Meeting(cut.parts);
  runtime.parallel(matrices, ceil_div(int64_t{1} << 15, D * D),
                   [&](int64_t item) { Pass::pack(p.R, item % kGates, item / kGates, D, R + item * size); });
  runtime.parallel_ranges(recurrences * cut.parts, 1, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t n = begin / cut.parts, stop = min_of(end, (n + 1) * cut.parts);
      const Tile tile = cut.at(n, begin - n * cut.parts, stop - n * cut.parts);
      Arena arena(buffers + n * static_cast<int64_t>(one.used()));
      const Buffers own(arena, cut.tile_rows, padded_row(D));
      if (tile.rows > 0) Pass(p, tile, {R + tile.head * kGates * size, D}, own, meetings[n]).run();
      begin = stop;
    }
  });
}

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
XLSTM_INLINE Vec<float> drop_bits(Vec<float> x, int bits) {
  UnsignedVec<float> u = (UnsignedVec<float>)x;
  u += (uint32_t{1} << (bits - 1)) - 1 + ((u >> bits) & 1);
  u &= ~uint32_t{0} << bits;
  return select<float>(x == x, (Vec<float>)u, x);
}

// h as the outputs hold it. |h| <= 1, so overflow needs no care; below 2^-14 float16 has steps of 2^-24, as float has
// near 0.75.
template <class T>
XLSTM_INLINE Vec<T> rounded(Vec<T> h, Type type) {
  if constexpr (std::is_same_v<T, float>) {
    if (type == Type::bf16) return drop_bits(h, 16);
    if (type == Type::f16) {
      return select<float>(abs<float>(h) < 0x1p-14f, (h + 0.75f) - 0.75f, drop_bits(h, 13));
    }
  }
  return h;
}

XLSTM_INLINE int64_t length_of(const int64_t* lengths, int64_t b, int64_t seqlen) {
  return lengths ? lengths[b] : seqlen;
}

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
