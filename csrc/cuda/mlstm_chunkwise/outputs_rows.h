#pragma once
// What becomes of the rows of a warp once their sums are in its accumulators: weights, sums, and their way to memory.
#include "cuda/mlstm_chunkwise/outputs_again.h"
#include "cuda/mlstm_chunkwise/outputs_block.h"

namespace xlstm::cuda {
namespace {

using namespace device;

// sum: for h, this lane's part of b_bar q n + the sum of P; writes r.
template <OutputKind O, class A>
XLSTM_DEVICE Finish<A> finish_row(const MlstmOutputsParams<A>& p, const Item& at, const RowVectors<A>& rows, int row,
                                  A sum) {
  const A scale = static_cast<A>(p.options.scale);
  if (O == OutputKind::dq) return {1, scale * rows.rho[row] * rows.of_state[row]};
  if (O != OutputKind::h) return {1, rows.of_state[row]};
  const A r = scale * sum_of_row(sum);
  const int index = at.first_row + row;
  if (index >= at.tokens) return {0, 0};
  const int64_t token = at.token(p.shape, index);
  if (at.column_tile == 0 && lane_pair() == 0) p.r[token] = r;
  return {scale / denominator(p.options, r, denominator_floor(p.options, p.gates.m[token])), 0};
}

// Calls f<T>() where data of this type are those that a product is for; returns whether they are.
template <Product P, class F>
XLSTM_DEVICE bool with_own_type(Type type, F f) {
  if (type == element_type(P)) {
    f.template operator()<Element<P>>();
    return true;
  }
  if constexpr (element_type(P) == Type::f32) {
    if (type == Type::f16) {
      f.template operator()<__half>();
      return true;
    }
  }
  return false;
}

// 64 columns of a warp's 16 rows in memory, as many neighbours of a row for a lane as an Exchange holds in 16 bytes.
template <class T, class A>
struct WholeRows {
  using Wide = typename Exchange<A>::Wide;
  static constexpr int kWidth = Exchange<A>::kWidth, kLanes = kTileRows / kWidth;  // of a row
  static constexpr int kRowsAtOnce = 32 / kLanes, kAccesses = 16 / kRowsAtOnce;
  using Bits = std::conditional_t<kWidth * sizeof(T) == 8, uint2, uint4>;  // elements of 16 bits would come apart
  const T* first;
  int64_t pitch;
  int row = threadIdx.x % 32 / kLanes, column = threadIdx.x % kLanes * kWidth;

  XLSTM_DEVICE WholeRows(const AnyView& view, int64_t offset)
      : first(static_cast<const T*>(view.data) + offset), pitch(view.time) {}
  // The same for all lanes: no row is cut off, and all begin where an access may.
  XLSTM_DEVICE bool exist(int columns) const {
    return columns >= kTileRows && pitch % kWidth == 0 && aligned_for<Bits>(first);
  }
  // visit(i, row, pointer) for accesses 0 .. kCount - 1 of this lane, from access `begin` on.
  template <int kCount, class Visit>
  XLSTM_DEVICE void visit(int begin, Visit visit) const {
    const T* at = first + (row + begin * kRowsAtOnce) * pitch + column;
#pragma unroll
    for (int i = 0; i < kCount; ++i, at += kRowsAtOnce * pitch) {
      visit(i, row + (begin + i) * kRowsAtOnce, reinterpret_cast<const Bits*>(at));
    }
  }

  static XLSTM_DEVICE Wide widened(const Bits& bits) {
    const auto from = bits_as<Pack<T, kWidth>>(bits);
    Wide to;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) to.x[i] = widen<A>(from.x[i]);
    return to;
  }
  static XLSTM_DEVICE Bits narrowed(const Wide& from) {
    if constexpr (sizeof(T) == sizeof(A)) {
      return bits_as<Bits>(from);
    } else {
      const auto two = [&](int i) { return bits_as<uint32_t>(narrow_two<T>(from.x[i], from.x[i + 1])); };
      return {two(0), two(2)};
    }
  }
};

constexpr int kLoadsAtOnce = 8;  // that are in flight together

// 64 columns of a warp's 16 rows, of which `columns` and `rows` exist. What the others get does not matter.
template <Product P, class A>
XLSTM_DEVICE void read_rows(Exchange<A>& to, const AnyView& from, int64_t offset, int rows, int columns) {
  const int c = threadIdx.x % 32 * 2;
  bool done = false;
  with_own_type<P>(from.type, [&]<class T>() {
    using Whole = WholeRows<T, A>;
    using Bits = typename Whole::Bits;
    const Whole whole(from, offset);
    if (!whole.exist(columns)) return;
#pragma unroll 1
    for (int begin = 0; begin < Whole::kAccesses; begin += kLoadsAtOnce) {
      Bits bits[kLoadsAtOnce] = {};
      whole.template visit<kLoadsAtOnce>(begin, [&](int i, int row, const Bits* at) {
        if (row < rows) bits[i] = load_whole(at);
      });
      whole.template visit<kLoadsAtOnce>(
          begin, [&](int i, int row, const Bits*) { to.wide(row, whole.column) = whole.widened(bits[i]); });
    }
    done = true;
  });
  if (done) return;
#pragma unroll 1
  for (int row = 0; row < 16; ++row) {
    const int64_t index = offset + row * from.time + c;
    const A x = row < rows && c < columns ? load_any<A>(from.data, from.type, index) : A{0};
    const A y = row < rows && c + 1 < columns ? load_any<A>(from.data, from.type, index + 1) : A{0};
    to.at(row, c) = {x, y};
  }
}

template <Product P, class A>
XLSTM_DEVICE void write_rows(Exchange<A>& from, const AnyView& to, int64_t offset, int rows, int columns) {
  const int c = threadIdx.x % 32 * 2;
  bool done = false;
  with_own_type<P>(to.type, [&]<class T>() {
    using Whole = WholeRows<T, A>;
    using Bits = typename Whole::Bits;
    const Whole whole(to, offset);
    if (!whole.exist(columns)) return;
    whole.template visit<Whole::kAccesses>(0, [&](int, int row, const Bits* at) {
      if (row < rows) store_whole(const_cast<Bits*>(at), whole.narrowed(from.wide(row, whole.column)));
    });
    done = true;
  });
  if (done || c >= columns) return;
#pragma unroll 1
  for (int row = 0; row < rows; ++row) {
    const auto two = from.at(row, c);
    const int64_t index = offset + row * to.time + c;
    store_any(const_cast<void*>(to.data), to.type, index, two.x);
    if (c + 1 < columns) store_any(const_cast<void*>(to.data), to.type, index + 1, two.y);
  }
}

// A block's accumulators become output, in `exchange`; with what that held, the factor, their product is summed up.
// odd: NaN where one of a row is not finite.
template <OutputKind O, class A>
XLSTM_DEVICE void finish_block(Exchange<A>& exchange, const A (&acc)[8][4], const Finish<A> (&finish)[2], const A* n,
                               int columns, bool sum_up, A (&sums)[2], A (&odd)[2]) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const int c = 8 * j + 2 * lane_pair();
    A n_x = 0, n_y = 0;
    if (kUsesRho<O> && n && c < columns) n_x = n[c];
    if (kUsesRho<O> && n && c + 1 < columns) n_y = n[c + 1];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      auto& two = exchange.at(lane_group() + 8 * half, c);
      const A x = finish[half].scale * acc[j][2 * half] + times_weight(n_x, finish[half].of_n);
      const A y = finish[half].scale * acc[j][2 * half + 1] + times_weight(n_y, finish[half].of_n);
      if (sum_up) sums[half] += x * two.x + y * two.y;
      two = {x, y};
      odd[half] += x * 0 + y * 0;
    }
  }
}

// The 16 rows from m on, of a warp.
template <Product P, OutputKind O, int kMaxBlocks, class A>
XLSTM_DEVICE void store_output(const MlstmOutputsParams<A>& p, const OutputRows<A>& s, int column_tiles, int m,
                               const A (&acc)[kMaxBlocks][8][4], const A (&of_p)[2], const A (&of_n)[2]) {
  const Item& at = s.at;
  const int first = at.begin + at.first_row + m, rows = min(16, at.tokens - at.first_row - m);
  const A* n = s.has_state ? p.normalisers + at.slot * p.shape.head_dim_qk + at.first_column : nullptr;
  const bool sum_up = kUsesRho<O> && p.row_sums;
  const auto finish = [&](int row, int half) {
    return finish_row<O>(p, at, s.rows, row, of_p[half] + times_weight(of_n[half], s.rows.of_state[row]));
  };
  const Finish<A> of_rows[2] = {finish(m + lane_group(), 0), finish(m + lane_group() + 8, 1)};
  Exchange<A>& exchange = s.exchange;
  A dots[2] = {}, odd[2] = {};
#pragma unroll 1
  for (int block = 0; block < s.blocks; ++block) {
    const int column = at.first_column + block * kTileRows, columns = columns_of<O>(p.shape) - column;
    if (sum_up) read_rows<P>(exchange, p.factor, p.factor.offset(at.batch, at.head, first) + column, rows, columns);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kMaxBlocks; ++i) {
      if (i != block) continue;
      finish_block<O>(exchange, acc[i], of_rows, n ? n + block * kTileRows : nullptr, columns, sum_up, dots, odd);
    }
    __syncwarp();
    write_rows<P>(exchange, p.out, p.out.offset(at.batch, at.head, first) + column, rows, columns);
    __syncwarp();
  }
  A* to =
      sum_up ? p.row_sums + (int64_t{at.batch_head} * column_tiles + at.column_tile) * p.shape.seqlen + first : nullptr;
#pragma unroll
  for (int half = 0; sum_up && half < 2; ++half) {
    const A dot = sum_of_row(dots[half]);
    const int row = lane_group() + 8 * half;
    if (row < rows && lane_pair() == 0) to[row] = dot;
  }
  const unsigned odd_lanes[2] = {__ballot_sync(~0u, odd[0] != 0), __ballot_sync(~0u, odd[1] != 0)};
  if ((odd_lanes[0] | odd_lanes[1]) == 0) return;
  __syncwarp();  // what is written again has been written by other lanes
  const int columns = min(s.blocks * kTileRows, columns_of<O>(p.shape) - at.first_column);
#pragma unroll 1
  for (int row = 0; row < rows; ++row) {
    const int lane = row % 8 * 4;  // the first of the four that have the row
    if (((row < 8 ? odd_lanes[0] : odd_lanes[1]) >> lane & 15) == 0) continue;
    const Finish<A> own = row < 8 ? of_rows[0] : of_rows[1];
    const Finish<A> of_row = {__shfl_sync(~0u, own.scale, lane), __shfl_sync(~0u, own.of_n, lane)};
    const A dot = Again<P, O>{p, s, m + row}.write(of_row, n, columns, sum_up);
    if (sum_up && threadIdx.x % 32 == 0) to[row] = dot;
  }
}

}  // namespace
}  // namespace xlstm::cuda
