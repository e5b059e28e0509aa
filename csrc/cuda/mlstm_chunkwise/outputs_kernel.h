#pragma once
// The kernel of outputs.h, for the sources that instantiate it, one per product.
//
// A block computes 64 rows x (64 x blocks) columns. Its work is one list of steps, each of them the product of 16 rows
// a warp with one tile of an operand: first those of the state, then for every tile of tokens those of the scores X Y^T
// and those of their product with Z. The tiles come through a ring, two steps ahead. Accumulators and scores stay in
// registers, and what is the same for all threads in shared memory.
#include "cuda/mlstm_chunkwise/outputs_again.h"
#include "cuda/mlstm_chunkwise/outputs_block.h"
#include "cuda/mlstm_chunkwise/outputs_instances.h"

namespace xlstm::cuda {
namespace {

using namespace device;

// ---- products ----

// d (16 x 64) += rows m .. of x times a tile.
template <Product P, bool kTransposed, class T>
XLSTM_DEVICE void multiply_x(Accumulator<P> (&d)[8][4], const TallTile<Element<P>>& x, int m, const T& tile) {
  using F = Fragments<P>;
#pragma unroll
  for (int k = 0; k < kTileDepth<Element<P>>; k += F::kDepth) {
    typename F::A a;
    if constexpr (kTransposed) {
      F::load_a_paired(a, x, m, k);
    } else {
      F::load_a(a, x, m, k);
    }
    multiply<P, kTransposed>(d, a, tile, k);
  }
}

// d (16 x 64) += the columns of P that belong to a group of tokens times the tile of these tokens.
template <Product P>
XLSTM_DEVICE void multiply_scores(Accumulator<P> (&d)[8][4], const Accumulator<P> (&scores)[8][4], int group,
                                  const WideTile<Element<P>>& tile) {
  using F = Fragments<P>;
  constexpr int kSteps = kTileDepth<Element<P>> / F::kDepth;
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    typename F::A a;
    F::to_a(a, scores, group * kSteps + i);
    multiply<P, true>(d, a, tile, i * F::kDepth);
  }
}

// sums += rows m .. of x times a vector.
template <Product P>
XLSTM_DEVICE void dot_x(Accumulator<P> (&sums)[2], const TallTile<Element<P>>& x, int m, const Accumulator<P>* vector) {
  using F = Fragments<P>;
#pragma unroll
  for (int k = 0; k < kTileDepth<Element<P>>; k += F::kDepth) {
    typename F::A a;
    F::load_a_paired(a, x, m, k);
    F::dot(sums, a, vector + k);
  }
}

// What a warp has of its 16 rows.
template <Product P, int kMaxBlocks>
struct Sums {
  using A = Accumulator<P>;
  A acc[kMaxBlocks][8][4] = {}, scores[8][4] = {};
  A of_p[2] = {}, of_n[2] = {};  // h: this lane's parts of the rows of P, and of X times n
};

// acc = X state, for one block of columns and one depth of X; after the last depth times the weights of the state.
template <Product P, OutputKind O, int kMaxBlocks>
XLSTM_DEVICE void add_state(Sums<P, kMaxBlocks>& sums, OutputsShared<P>& s, const TileStep& step, int m,
                            const TallTile<Element<P>>& x, const Stage<Element<P>>& tile, Accumulator<P> scale) {
#pragma unroll
  for (int n = 0; n < kMaxBlocks; ++n) {
    if (step.n != n) continue;
    if constexpr (kStateTransposed<O>) {
      multiply_x<P, true>(sums.acc[n], x, m, tile.wide);
    } else {
      multiply_x<P, false>(sums.acc[n], x, m, tile.tall);
    }
    if (step.k + 1 < s.schedule.depth) continue;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = m + lane_group() + 8 * half;
      const Accumulator<P> weight = s.rows.of_state[row] * (O == OutputKind::dq ? scale * s.rows.iota[row] : 1);
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        Accumulator<P>& x = sums.acc[n][j / 2][2 * half + j % 2];
        x = times_weight(x, weight);
      }
    }
  }
}

template <Product P, int kMaxBlocks>
XLSTM_DEVICE void add_scores(Sums<P, kMaxBlocks>& sums, const TileStep& step, int m, const TallTile<Element<P>>& x,
                             const TallTile<Element<P>>& y) {
  if (step.k == 0) {
#pragma unroll
    for (int i = 0; i < 32; ++i) sums.scores[i / 4][i % 4] = 0;
  }
  multiply_x<P, false>(sums.scores, x, m, y);
}

template <Product P, int kMaxBlocks>
XLSTM_DEVICE void add_values(Sums<P, kMaxBlocks>& sums, const TileStep& step, const WideTile<Element<P>>& z) {
#pragma unroll
  for (int n = 0; n < kMaxBlocks; ++n) {
#pragma unroll
    for (int group = 0; group < kTileRows / kTileDepth<Element<P>>; ++group) {
      if (step.n == n && step.k == group) multiply_scores<P>(sums.acc[n], sums.scores, group, z);
    }
  }
}

// ---- results ----

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

template <Product P, OutputKind O, int kMaxBlocks, class A>
XLSTM_DEVICE void store_output(const MlstmOutputsParams<A>& p, OutputsShared<P>& s, int column_tiles, int m,
                               const Sums<P, kMaxBlocks>& sums) {
  const Item& at = s.at;
  const int first = at.begin + at.first_row + m, rows = min(16, at.tokens - at.first_row - m);
  const A* n = s.schedule.has_state ? p.normalisers + at.slot * p.shape.head_dim_qk + at.first_column : nullptr;
  const bool sum_up = kUsesRho<O> && p.row_sums;
  const auto finish = [&](int row, int half) {
    return finish_row<O>(p, at, s.rows, row, sums.of_p[half] + times_weight(sums.of_n[half], s.rows.of_state[row]));
  };
  const Finish<A> of_rows[2] = {finish(m + lane_group(), 0), finish(m + lane_group() + 8, 1)};
  Exchange<A>& exchange = s.exchange();
  A dots[2] = {}, odd[2] = {};
#pragma unroll 1
  for (int block = 0; block < s.schedule.blocks; ++block) {
    const int column = at.first_column + block * kTileRows, columns = columns_of<O>(p.shape) - column;
    if (sum_up) read_rows<P>(exchange, p.factor, p.factor.offset(at.batch, at.head, first) + column, rows, columns);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kMaxBlocks; ++i) {
      if (i != block) continue;
      finish_block<O>(exchange, sums.acc[i], of_rows, n ? n + block * kTileRows : nullptr, columns, sum_up, dots, odd);
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
  const int columns = min(s.schedule.blocks * kTileRows, columns_of<O>(p.shape) - at.first_column);
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

// ---- the kernel ----

// Per multiprocessor: 168 registers a thread, or 255.
template <Product P, int kMaxBlocks>
constexpr int kResidentBlocks = kMaxBlocks == 2 && P != Product::tf32x3 ? 3 : 2;

template <Product P, OutputKind O, int kMaxBlocks>
__global__ void __launch_bounds__(kTileThreads, (kResidentBlocks<P, kMaxBlocks>))
    outputs(MlstmOutputsParams<Accumulator<P>> p, OutputsTiling tiling) {
  using A = Accumulator<P>;
  XLSTM_SHARED(OutputsShared<P>, s);
  constexpr bool kCalls = kMaxBlocks < 4;  // with all registers in use, calls would move sums about where h is stored
  const Loader<P, O, kCalls> loader = {p, s, tiling.resident};
  if (threadIdx.x % 32 == 0) loader.prepare(tiling);
  __syncthreads();
  if (s.at.first_row >= s.at.tokens) return;

  TileStep ahead = s.schedule.first();
  const auto load_next = [&](int stage) {
    if (ahead.phase != Phase::end) {
      loader.load(ahead, stage);
      s.schedule.advance(ahead);
    }
    cp_async_commit();
  };
#pragma unroll 1
  for (int stage = 0; stage < kStages - 1; ++stage) load_next(stage);
  loader.load_rows();
  if (O == OutputKind::h && s.schedule.has_state) loader.load_n();

  const A scale = static_cast<A>(p.options.scale);
  const int warp = threadIdx.x / 32, m = 16 * warp;
  const int x_row = XLSTM_MUTANT("mlstm_outputs: rows of another warp") ? m ^ 16 : m;
  Sums<P, kMaxBlocks> sums;
  int stage = 0;
  for (TileStep step = s.schedule.first(); step.phase != Phase::end; s.schedule.advance(step)) {
    cp_async_wait<kStages - 2>(XLSTM_MUTANT("mlstm_outputs: one group too few is waited for"));
    // Now everybody's copies are there, and nobody reads the stage of the step before any more.
    sync_threads(XLSTM_MUTANT("mlstm_outputs: no barrier before a step"));
    const int before = stage == 0 ? kStages - 1 : stage - 1;
    load_next(XLSTM_MUTANT("mlstm_outputs: a stage is filled while it is read") ? stage : before);

    const Stage<Element<P>>& tile = s.ring[stage];
    const TallTile<Element<P>>& x = loader.x_tile(step, stage);
    if (step.phase == Phase::state) {
      if (O == OutputKind::h && step.n == 0) {
        dot_x<P>(sums.of_n, x, x_row, s.n(tiling.resident) + step.k * kTileDepth<Element<P>>);
      }
      add_state<P, O>(sums, s, step, x_row, x, tile, scale);
    } else if (step.phase == Phase::scores) {
      add_scores(sums, step, x_row, x, tile.tall);
      if (step.k + 1 == s.schedule.depth) {
        weigh<O, P == Product::tf32x3>(sums.scores, s.rows, m, loader.columns(step.tile), step.tile, s.at, scale,
                                       sums.of_p);
      }
    } else {
      add_values(sums, step, tile.wide);
    }
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  __syncthreads();  // the exchange lies where the tiles were
  store_output<P, O>(p, s, tiling.column_tiles, m, sums);
}

// ---- launch ----

template <Product P, OutputKind O, int kMaxBlocks>
cudaError_t launch_output(const MlstmOutputsParams<Accumulator<P>>& p, OutputsTiling tiling, cudaStream_t stream) {
  const int64_t chunks = p.shape.batch * p.shape.num_heads * tiling.slots;
  const int64_t blocks = chunks * tiling.row_tiles * tiling.column_tiles;
  if (blocks > kMaxGridX) return cudaErrorInvalidConfiguration;
  if (blocks == 0) return cudaSuccess;
  tiling.resident = outputs_shared_bytes<P, O>(p.shape, true) <= max_shared_bytes();
  Launch l;
  l.grid = dim3(static_cast<unsigned>(blocks));
  l.block = dim3(kTileThreads);
  l.shared_bytes = outputs_shared_bytes<P, O>(p.shape, tiling.resident);
  l.name = "mlstm outputs";
  l.stream = stream;
  return launch(l, outputs<P, O, kMaxBlocks>, p, tiling);
}

template <Product P, int kMaxBlocks>
cudaError_t launch_outputs(const MlstmOutputsParams<Accumulator<P>>& p, const OutputsTiling& tiling,
                           cudaStream_t stream) {
  switch (p.output) {
    case OutputKind::h:
      return launch_output<P, OutputKind::h, kMaxBlocks>(p, tiling, stream);
    case OutputKind::dq:
      return launch_output<P, OutputKind::dq, kMaxBlocks>(p, tiling, stream);
    case OutputKind::dk:
      return launch_output<P, OutputKind::dk, kMaxBlocks>(p, tiling, stream);
    case OutputKind::dv:
      return launch_output<P, OutputKind::dv, kMaxBlocks>(p, tiling, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace
}  // namespace xlstm::cuda
