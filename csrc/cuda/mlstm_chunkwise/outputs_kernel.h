#pragma once
// The kernel behind outputs.h, for the sources that instantiate it, one per product.
//
// A block computes 64 rows x (64 x blocks) columns. Its work is one list of steps, each of them the product of 16 rows
// a warp with one tile of an operand: first those of the state, then for every tile of tokens those of the scores X Y^T
// and those of their product with Z. The tiles come through a ring, two steps ahead. Accumulators and scores stay in
// registers, and what is the same for all threads in shared memory.
#include <climits>

#include "cuda/mlstm_chunkwise/outputs_instances.h"
#include "cuda/mlstm_chunkwise/tile.h"
#include "cuda/mlstm_chunkwise/weights.h"

namespace xlstm::cuda {
namespace {

using namespace device;

constexpr int kStages = 3;

template <OutputKind O>
constexpr bool kRowsAreQueries = O == OutputKind::h || O == OutputKind::dq;
template <OutputKind O>
constexpr bool kUsesRho = O == OutputKind::dq || O == OutputKind::dk;
// The contracted dimension runs down the columns of the stored state.
template <OutputKind O>
constexpr bool kStateTransposed = O == OutputKind::h || O == OutputKind::dv;

template <OutputKind O>
XLSTM_HOST_DEVICE int depth_of(const MlstmShape& shape) {
  return static_cast<int>(kStateTransposed<O> ? shape.head_dim_qk : shape.head_dim_v);
}
template <OutputKind O>
XLSTM_HOST_DEVICE int columns_of(const MlstmShape& shape) {
  return static_cast<int>(kStateTransposed<O> ? shape.head_dim_v : shape.head_dim_qk);
}
XLSTM_HOST_DEVICE inline int tiles(int count, int size) {
  return (count + size - 1) / size;
}

// ---- what a block works on ----

struct Item {
  int batch, head, batch_head;    // batch_head: index into (B, H)
  int slot;                       // of (B, H, slots)
  int begin, tokens;              // of the chunk
  int first_row;                  // of its tokens
  int column_tile, first_column;  // of the output
  bool outermost;                 // the sequence's first chunk, or its last where rows are keys

  // Index into (B, H, S)
  XLSTM_DEVICE int64_t token(const MlstmShape& shape, int index) const {
    return batch_head * shape.seqlen + begin + index;
  }
};

template <OutputKind O, class A>
XLSTM_DEVICE Item locate(const MlstmOutputsArguments<A>& p, const OutputsTiling& tiling) {
  const unsigned heads = static_cast<unsigned>(p.shape.num_heads);
  const unsigned tile = blockIdx.x / tiling.column_tiles, slot = tile / tiling.row_tiles,
                 batch_head = slot / tiling.slots;
  const Chunk chunk = find_chunk(p.shape, p.chunk_size, batch_head / heads, slot % tiling.slots);
  Item at;
  at.batch = static_cast<int>(batch_head / heads), at.head = static_cast<int>(batch_head % heads);
  at.batch_head = static_cast<int>(batch_head);
  at.slot = static_cast<int>(slot);
  at.begin = static_cast<int>(chunk.begin), at.tokens = static_cast<int>(chunk.end - chunk.begin);
  at.first_row = static_cast<int>(tile % tiling.row_tiles) * kTileRows;
  at.column_tile = static_cast<int>(blockIdx.x % tiling.column_tiles);
  at.first_column = at.column_tile * tiling.blocks * kTileRows;
  at.outermost = kRowsAreQueries<O> ? chunk.first : chunk.last;
  return at;
}

// ---- steps ----

enum class Phase { state, scores, values, end };

// state: depth k of X, block n of columns. scores: depth k, tile of tokens. values: tokens k of the tile, block n.
struct TileStep {
  Phase phase;
  int tile, k, n;
};

struct Schedule {
  bool has_state;
  int depth, blocks;          // tiles along the depth of X, blocks of columns
  int first_tile, last_tile;  // of tokens
  int groups;                 // of tokens in a tile

  XLSTM_DEVICE TileStep first() const { return {has_state ? Phase::state : Phase::scores, first_tile, 0, 0}; }

  XLSTM_DEVICE void advance(TileStep& step) const {
    if (step.phase != Phase::scores && ++step.n < blocks) return;
    step.n = 0;
    if (++step.k < (step.phase == Phase::values ? groups : depth)) return;
    step.k = 0;
    if (step.phase == Phase::values) ++step.tile;
    step.phase = step.phase == Phase::scores ? Phase::values : step.tile > last_tile ? Phase::end : Phase::scores;
  }

  // Whether a step is the first one that multiplies its depth of X.
  XLSTM_DEVICE bool opens_depth(const TileStep& step) const {
    return has_state ? step.phase == Phase::state && step.n == 0 : step.tile == first_tile;
  }
};

template <Product P, OutputKind O>
XLSTM_DEVICE Schedule make_schedule(const MlstmShape& shape, const Item& at, const OutputsTiling& tiling,
                                    bool zero_state) {
  Schedule schedule;
  schedule.has_state = !(at.outermost && zero_state);
  schedule.depth = tiles(depth_of<O>(shape), kTileDepth<Element<P>>);
  schedule.blocks = min(tiling.blocks, tiles(columns_of<O>(shape) - at.first_column, kTileRows));
  schedule.first_tile = kRowsAreQueries<O> ? 0 : at.first_row / kTileRows;
  schedule.last_tile = kRowsAreQueries<O> ? at.first_row / kTileRows : tiles(at.tokens, kTileRows) - 1;
  schedule.groups = kTileRows / kTileDepth<Element<P>>;
  return schedule;
}

// ---- shared memory ----

// Of 64 tokens, those of the block's rows or of a tile of columns.
template <class A>
struct TokenVectors {
  Pair<A> log[kTileRows];  // y of keys, z of queries
  int32_t start[kTileRows];
  A iota[kTileRows], rho[kTileRows];
};

template <class A>
struct RowVectors : TokenVectors<A> {
  A of_state[kTileRows];  // weight of the chunk's state
};

// 16 rows x 64 columns of a warp on their way between registers and global memory, where lanes want whole rows.
template <class A>
struct Exchange {
  struct alignas(2 * sizeof(A)) Two {
    A x, y;
  };
  static constexpr int kPitch = kTileRows + 8;  // rows of accumulators in different banks
  A x[16 * kPitch];

  XLSTM_DEVICE Two& at(int row, int even_column) { return *reinterpret_cast<Two*>(&x[row * kPitch + even_column]); }
};

template <class E>
union Stage {
  TallTile<E> tall;
  WideTile<E> wide;
};

// Behind it: tiles of X, one per depth where X is resident, else one per stage; for h the chunk's n, zeros behind.
template <Product P>
struct OutputsShared {
  using E = Element<P>;
  using A = Accumulator<P>;

  Item at;
  Schedule schedule;
  Matrix X, Y, Z, state;
  RowVectors<A> rows;
  TokenVectors<A> columns[2];  // of tiles of tokens in turn
  Stage<E> ring[kStages];

  XLSTM_DEVICE TallTile<E>* x() { return reinterpret_cast<TallTile<E>*>(this + 1); }
  XLSTM_DEVICE A* n(bool resident) { return reinterpret_cast<A*>(x() + (resident ? schedule.depth : kStages)); }
  // One per warp, over the ring and X: both have done their work when it is needed.
  XLSTM_DEVICE Exchange<A>& exchange() { return reinterpret_cast<Exchange<A>*>(ring)[threadIdx.x / 32]; }
  static_assert(kTileThreads / 32 * sizeof(Exchange<A>) <= sizeof(ring) + sizeof(TallTile<E>));
};

template <Product P, OutputKind O>
size_t outputs_shared_bytes(const MlstmShape& shape, bool resident) {
  const size_t depth = tiles(depth_of<O>(shape), kTileDepth<Element<P>>);
  const size_t n = O == OutputKind::h ? depth * kTileDepth<Element<P>> * sizeof(Accumulator<P>) : 0;
  return sizeof(OutputsShared<P>) + (resident ? depth : kStages) * sizeof(TallTile<Element<P>>) + n;
}

// ---- loads ----

template <Product P, OutputKind O>
struct Loader {
  using E = Element<P>;
  using A = Accumulator<P>;
  static constexpr int kDepth = kTileDepth<E>;

  const MlstmOutputsArguments<A>& p;
  OutputsShared<P>& s;
  bool resident;

  // By one thread: where everything is.
  XLSTM_DEVICE void prepare(const OutputsTiling& tiling) const {
    const Item at = locate<O>(p, tiling);
    const int a = depth_of<O>(p.shape), b = columns_of<O>(p.shape);
    const int rows = at.tokens + XLSTM_MUTANT("mlstm_outputs: tokens behind the chunk are read");
    const int64_t Dqk = p.shape.head_dim_qk, Dv = p.shape.head_dim_v;
    s.X = token_matrix<P>(p.X, at.batch, at.head, at.begin, rows, a);
    s.Y = token_matrix<P>(p.Y, at.batch, at.head, at.begin, rows, a);
    s.Z = token_matrix<P>(p.Z, at.batch, at.head, at.begin, rows, b);
    s.state = make_matrix<P>({p.states, element_type(P)}, at.slot * Dqk * Dv, Dv, static_cast<int>(Dqk),
                             static_cast<int>(Dv));
    s.at = at;
    s.schedule = make_schedule<P, O>(p.shape, at, tiling, p.outer_state_is_zero);
  }

  XLSTM_DEVICE TallTile<E>& x_tile(const TileStep& step, int stage) const { return s.x()[resident ? step.k : stage]; }

  // Everything that a step needs and is not there yet, into a stage that nobody reads any more.
  XLSTM_DEVICE void load(const TileStep& step, int stage) const {
    Stage<E>& to = s.ring[stage];
    const int column = s.at.first_column + step.n * kTileRows;
    if (step.phase == Phase::values) {
      load_tile(to.wide, s.Z, step.tile * kTileRows + step.k * kDepth, column);
      return;
    }
    if (step.phase == Phase::scores) {
      load_tile(to.tall, s.Y, step.tile * kTileRows, step.k * kDepth);
      if (step.k == 0) load_columns(step.tile);
    } else if constexpr (kStateTransposed<O>) {
      load_tile(to.wide, s.state, step.k * kDepth, column);
    } else {
      load_tile(to.tall, s.state, column, step.k * kDepth);
    }
    if (resident && !s.schedule.opens_depth(step)) return;
    load_tile(x_tile(step, stage), s.X, s.at.first_row, step.k * kDepth);
  }

  XLSTM_DEVICE TokenVectors<A>& columns(int tile) const {
    return s.columns[XLSTM_MUTANT("mlstm_outputs: one buffer of column vectors") ? 0 : tile % 2];
  }

  // Half of the threads bring what every output needs, the others iota and rho.
  XLSTM_DEVICE void load_columns(int tile) const {
    TokenVectors<A>& to = columns(tile);
    const int c = threadIdx.x % kTileRows, index = tile * kTileRows + c;
    const int64_t token = s.at.token(p.shape, index);
    const bool inside = index < s.at.tokens;
    if (threadIdx.x < kTileRows) {
      const Pair<A>* log = kRowsAreQueries<O> ? p.gates.y : p.gates.z;
      cp_async<sizeof(Pair<A>)>(shared_address(&to.log[c]), log + token, inside);
      if (!kRowsAreQueries<O>) cp_async<4>(shared_address(&to.start[c]), p.gates.start + token, inside);
    } else if (!kRowsAreQueries<O>) {
      cp_async<sizeof(A)>(shared_address(&to.iota[c]), p.iota + token, inside);
      if (kUsesRho<O>) cp_async<sizeof(A)>(shared_address(&to.rho[c]), p.rho + token, inside);
    }
  }

  // By half of the threads, a row each; rows behind the chunk hold what its first token has, and are not stored.
  XLSTM_DEVICE void load_rows() const {
    const int r = threadIdx.x;
    if (r >= kTileRows) return;
    const bool inside = s.at.first_row + r < s.at.tokens;
    const int64_t token = s.at.token(p.shape, inside ? s.at.first_row + r : 0);
    s.rows.log[r] = (kRowsAreQueries<O> ? p.gates.z : p.gates.y)[token];
    s.rows.start[r] = p.gates.start[token];
    if (O == OutputKind::dq) s.rows.iota[r] = p.iota[token], s.rows.rho[r] = p.rho[token];
    s.rows.of_state[r] = inside && s.schedule.has_state ? weight_of_state(r) : 0;
  }

  // b_bar_t of a query, a_bar_s of a key.
  XLSTM_DEVICE A weight_of_state(int r) const {
    constexpr bool kAccurate = P == Product::tf32x3;
    if (kRowsAreQueries<O>) return state_weight<kAccurate>(p.gates.M[s.at.slot], s.rows.log[r], s.rows.start[r]);
    const int last = s.at.tokens - 1;
    const int64_t token = s.at.token(p.shape, last);
    const int key = s.at.first_row + r + s.at.begin;
    return token_weight<kAccurate>(s.rows.log[r], p.gates.z[token], key, last + s.at.begin, p.gates.start[token]);
  }

  XLSTM_DEVICE void load_n() const {
    const int64_t Dqk = p.shape.head_dim_qk;
    for (int a = threadIdx.x; a < s.schedule.depth * kDepth; a += kTileThreads) {
      s.n(resident)[a] = a < Dqk ? p.normalisers[s.at.slot * Dqk + a] : 0;
    }
  }
};

// ---- scores and their weights ----

// What of a key or a query goes into the weight of a pair. The index is that in the chunk.
template <class A>
struct Token {
  Pair<A> log;
  int index, start;  // start: of what a query sees
  A iota, rho;       // of a query, with the scale of q
};

// Queries behind the chunk see nothing.
template <OutputKind O, class A>
XLSTM_DEVICE Token<A> token_at(const TokenVectors<A>& vectors, int at, int first, const Item& chunk, bool query,
                               A scale) {
  Token<A> token = {vectors.log[at], first + at, 0, 0, 0};
  if (!query) return token;
  token.start = token.index < chunk.tokens ? vectors.start[at] - chunk.begin : INT_MAX;
  if (O != OutputKind::h) token.iota = scale * vectors.iota[at];
  if (kUsesRho<O>) token.rho = scale * vectors.rho[at];
  return token;
}

// P of a key and a query from their score. Selected, not multiplied by zero: the score may be anything.
template <OutputKind O, bool kAccurate, class A>
XLSTM_DEVICE A weighted(A score, const Token<A>& key, const Token<A>& query, bool blind) {
  const bool visible = query.start <= key.index && key.index + blind <= query.index;
  if (O == OutputKind::dv) score *= query.iota;
  if (kUsesRho<O>) score = query.iota * score + query.rho;
  return visible ? decay<kAccurate>(key.log, query.log) * score : 0;
}

// 16 x 64 scores of a warp, rows from `row` of the block on, tile `tile` of columns. For h the sums of rows, before
// they are rounded, are added to `sums`.
template <OutputKind O, bool kAccurate, class A>
XLSTM_DEVICE void weigh(A (&scores)[8][4], const RowVectors<A>& rows, int row, const TokenVectors<A>& columns, int tile,
                        const Item& at, A scale, A (&sums)[2]) {
  constexpr bool kQueries = kRowsAreQueries<O>;
  const bool blind = XLSTM_MUTANT("mlstm_outputs: a token does not see itself");
  const Token<A> of_row[2] = {token_at<O>(rows, row + lane_group(), at.first_row, at, kQueries, scale),
                              token_at<O>(rows, row + lane_group() + 8, at.first_row, at, kQueries, scale)};
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int c = 8 * j + 2 * lane_pair() + e;
      const Token<A> column = token_at<O>(columns, c, tile * kTileRows, at, !kQueries, scale);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        A& score = scores[j][2 * half + e];
        const Token<A>& key = kQueries ? column : of_row[half];
        const Token<A>& query = kQueries ? of_row[half] : column;
        score = weighted<O, kAccurate>(score, key, query, blind);
        if (O == OutputKind::h) sums[half] += score;
      }
    }
  }
}

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

// A state that a boundary cuts off may hold anything.
template <class A>
XLSTM_DEVICE A times_weight(A x, A weight) {
  return weight == 0 ? 0 : weight * x;
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

template <class A>
XLSTM_DEVICE A denominator(const MlstmOptions& options, A r, A m) {
  if (!options.normalize) return 1;
  const A size = r < 0 ? -r : r, floor = options.sigmoid_gate ? A{1} : exp(-m);
  return (size > floor ? size : floor) + static_cast<A>(options.eps);
}

// What becomes of a row's accumulators: times `scale`, plus `of_n` times n.
template <class A>
struct Finish {
  A scale, of_n;
};

// sum: for h, this lane's part of b_bar q n + the sum of P; writes r.
template <OutputKind O, class A>
XLSTM_DEVICE Finish<A> finish_row(const MlstmOutputsArguments<A>& p, const Item& at, const RowVectors<A>& rows, int row,
                                  A sum) {
  const A scale = static_cast<A>(p.options.scale);
  if (O == OutputKind::dq) return {1, scale * rows.rho[row] * rows.of_state[row]};
  if (O != OutputKind::h) return {1, rows.of_state[row]};
  const A r = scale * sum_of_row(sum);
  const int index = at.first_row + row;
  if (index >= at.tokens) return {0, 0};
  const int64_t token = at.token(p.shape, index);
  if (at.column_tile == 0 && lane_pair() == 0) p.r[token] = r;
  return {scale / denominator(p.options, r, p.gates.m[token]), 0};
}

// 64 columns of a warp's rows, of which `columns` and `rows` exist.
template <class A>
XLSTM_DEVICE void read_rows(Exchange<A>& to, const AnyView& from, int64_t offset, int rows, int columns) {
  const int c = threadIdx.x % 32 * 2;
#pragma unroll 2
  for (int row = 0; row < 16; ++row) {
    const int64_t index = offset + row * from.time + c;
    const A x = row < rows && c < columns ? load_any<A>(from.data, from.type, index) : A{0};
    const A y = row < rows && c + 1 < columns ? load_any<A>(from.data, from.type, index + 1) : A{0};
    to.at(row, c) = {x, y};
  }
}

template <class A>
XLSTM_DEVICE void write_rows(Exchange<A>& from, const AnyView& to, int64_t offset, int rows, int columns) {
  const int c = threadIdx.x % 32 * 2;
#pragma unroll 2
  for (int row = 0; row < rows; ++row) {
    if (c >= columns) continue;
    const auto two = from.at(row, c);
    store_two(const_cast<void*>(to.data), to.type, offset + row * to.time + c, two.x, two.y, c + 1 < columns);
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

// ---- rows that met inf or NaN ----

// In the products of a tile a row multiplies tokens that it may not see by zero, which makes NaN of inf and NaN. Where
// an output is not finite, its row is computed again, by a warp, from the tokens that the row sees alone: slow, rare,
// and without the matrix units.
template <Product P, OutputKind O>
struct Again {
  using A = Accumulator<P>;
  static constexpr int kLanes = 32;

  const MlstmOutputsArguments<A>& p;
  const OutputsShared<P>& s;
  int row;  // of the block

  XLSTM_DEVICE int64_t lane() const { return threadIdx.x % kLanes; }
  XLSTM_DEVICE int index() const { return s.at.first_row + row; }
  XLSTM_DEVICE int64_t offset(const AnyView& x, int token) const {
    return x.offset(s.at.batch, s.at.head, s.at.begin + token);
  }

  XLSTM_DEVICE A score(int other) const {
    A sum = 0;
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
    if (!s.schedule.has_state || weight == 0) return 0;
    A sum = 0;
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
    return weighted<O, P == Product::tf32x3>(x, key, query, false);
  }
  XLSTM_DEVICE int start_of(int query) const { return max(0, p.gates.start[s.at.token(p.shape, query)] - s.at.begin); }

  // One column per lane, before `finish`. What is NaN by the row's own token or the state stays NaN.
  XLSTM_DEVICE A sum_at(int64_t column) const {
    const bool inside = column < columns_of<O>(p.shape);
    const auto term = [&](int t) {
      const A x = weight(t);
      return inside ? x * load_any<A>(p.Z.data, p.Z.type, offset(p.Z, t) + column) : A{0};
    };
    A sum = term(index()) + (inside ? of_state(column) : A{0});
    if (__all_sync(~0u, !inside || sum != sum)) return sum;
    if constexpr (kRowsAreQueries<O>) {
      for (int t = start_of(index()); t < index(); ++t) sum += term(t);
    } else {
      for (int t = index() + 1; t < s.at.tokens && start_of(t) <= index(); ++t) sum += term(t);
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
      store_two(const_cast<void*>(p.out.data), p.out.type, offset(p.out, index()) + column, x, x, false);
    }
    for (int step = kLanes / 2; step > 0; step /= 2) dot += __shfl_xor_sync(~0u, dot, step);
    return dot;
  }
};

template <Product P, OutputKind O, int kMaxBlocks, class A>
XLSTM_DEVICE void store_output(const MlstmOutputsArguments<A>& p, OutputsShared<P>& s, int column_tiles, int m,
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
    if (sum_up) read_rows(exchange, p.factor, p.factor.offset(at.batch, at.head, first) + column, rows, columns);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kMaxBlocks; ++i) {
      if (i != block) continue;
      finish_block<O>(exchange, sums.acc[i], of_rows, n ? n + block * kTileRows : nullptr, columns, sum_up, dots, odd);
    }
    __syncwarp();
    write_rows(exchange, p.out, p.out.offset(at.batch, at.head, first) + column, rows, columns);
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
    outputs(MlstmOutputsArguments<Accumulator<P>> p, OutputsTiling tiling) {
  using A = Accumulator<P>;
  XLSTM_SHARED(OutputsShared<P>, s);
  const Loader<P, O> loader = {p, s, tiling.resident};
  if (threadIdx.x == 0) loader.prepare(tiling);
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
cudaError_t launch_output(const MlstmOutputsArguments<Accumulator<P>>& p, OutputsTiling tiling, cudaStream_t stream) {
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
cudaError_t launch_outputs(const MlstmOutputsArguments<Accumulator<P>>& p, const OutputsTiling& tiling,
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
