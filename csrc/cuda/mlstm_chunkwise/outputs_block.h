#pragma once
// What a block of outputs_kernel.h works on: its rows and columns, its steps, its shared memory and the loads into it,
// and the weights of pairs of tokens.
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

// The compiler would divide twice where one place asks for the quotient and another one for the remainder.
struct Division {
  int quotient, remainder;
  XLSTM_DEVICE Division(unsigned x, unsigned by)
      : quotient(static_cast<int>(x / by)), remainder(static_cast<int>(x - quotient * by)) {}
};

// rows: of a block.
template <OutputKind O, class A>
XLSTM_DEVICE Item locate(const MlstmOutputsParams<A>& p, const OutputsTiling& tiling, int rows = kTileRows) {
  const Division tile(blockIdx.x, tiling.column_tiles), slot(tile.quotient, tiling.row_tiles),
      batch_head(slot.quotient, tiling.slots), batch(batch_head.quotient, static_cast<unsigned>(p.shape.num_heads));
  const Chunk chunk = find_chunk(p.shape, p.chunk_size, batch.quotient, batch_head.remainder);
  Item at;
  at.batch = batch.quotient, at.head = batch.remainder;
  at.batch_head = batch_head.quotient;
  at.slot = slot.quotient;
  at.begin = static_cast<int>(chunk.begin), at.tokens = static_cast<int>(chunk.end - chunk.begin);
  at.first_row = slot.remainder * rows;
  at.column_tile = tile.remainder;
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
  static constexpr int kWidth = 16 / sizeof(A);
  using Wide = Pack<A, kWidth>;
  A x[16 * kPitch];

  XLSTM_DEVICE Two& at(int row, int even_column) { return *reinterpret_cast<Two*>(&x[row * kPitch + even_column]); }
  XLSTM_DEVICE Wide& wide(int row, int column) { return *reinterpret_cast<Wide*>(&x[row * kPitch + column]); }
};

template <class E>
union Stage {
  TallTile<E> tall;
  WideTile<E> wide;
};

// After it: tiles of X, one per depth where X is resident, else one per stage; for h the chunk's n, zeros past it.
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

// What becomes of 64 rows once their sums are there.
template <class A>
struct OutputRows {
  const Item& at;
  const RowVectors<A>& rows;
  Exchange<A>& exchange;  // the warp's
  bool has_state;
  int blocks;  // of 64 columns
};

// ---- loads ----

// b_bar_t of a query, a_bar_s of a key.
template <Product P, OutputKind O, class A>
XLSTM_DEVICE A weight_of_state(const RowVectors<A>& rows, const MlstmOutputsParams<A>& p, const Item& at, int r) {
  constexpr bool kAccurate = P == Product::tf32x3;
  if (kRowsAreQueries<O>) return state_weight<kAccurate>(p.gates.M[at.slot], rows.log[r], rows.start[r]);
  const int last = at.tokens - 1;
  const int64_t token = at.token(p.shape, last);
  const int key = at.first_row + r + at.begin;
  return token_weight<kAccurate>(rows.log[r], p.gates.z[token], key, last + at.begin, p.gates.start[token]);
}

// Row r. Rows past the chunk hold what its first token has, and are not stored.
template <Product P, OutputKind O, class A>
XLSTM_DEVICE void load_row(RowVectors<A>& rows, const MlstmOutputsParams<A>& p, const Item& at, int r, bool has_state) {
  const bool inside = at.first_row + r < at.tokens;
  const int64_t token = at.token(p.shape, inside ? at.first_row + r : 0);
  rows.log[r] = (kRowsAreQueries<O> ? p.gates.z : p.gates.y)[token];
  rows.start[r] = p.gates.start[token];
  if (O == OutputKind::dq) rows.iota[r] = p.iota[token], rows.rho[r] = p.rho[token];
  rows.of_state[r] = inside && has_state ? weight_of_state<P, O>(rows, p, at, r) : 0;
}

// kCalls: load_tile
template <Product P, OutputKind O, bool kCalls>
struct Loader {
  using E = Element<P>;
  using A = Accumulator<P>;
  static constexpr int kDepth = kTileDepth<E>;

  const MlstmOutputsParams<A>& p;
  OutputsShared<P>& s;
  bool resident;

  // By one thread of each warp: where everything is, a matrix for each warp.
  XLSTM_DEVICE void prepare(const OutputsTiling& tiling) const {
    const Item at = locate<O>(p, tiling);
    const int a = depth_of<O>(p.shape), b = columns_of<O>(p.shape);
    const int rows = at.tokens + XLSTM_MUTANT("mlstm_outputs: tokens past the chunk are read");
    const int64_t Dqk = p.shape.head_dim_qk, Dv = p.shape.head_dim_v;
    const auto of_tokens = [&](const AnyView& x, int columns) {
      return token_matrix<P>(x, at.batch, at.head, at.begin, rows, columns);
    };
    static_assert(kTileThreads / 32 == 4);
    const unsigned warp = threadIdx.x / 32;
    if (warp == 0) {
      s.X = of_tokens(p.X, a);
    } else if (warp == 1) {
      s.Y = of_tokens(p.Y, a);
    } else if (warp == 2) {
      s.Z = of_tokens(p.Z, b);
    } else {
      s.state = make_matrix<P>({p.states, element_type(P)}, at.slot * Dqk * Dv, Dv, static_cast<int>(Dqk),
                               static_cast<int>(Dv));
      s.at = at;
      s.schedule = make_schedule<P, O>(p.shape, at, tiling, p.outer_state_is_zero);
    }
  }

  XLSTM_DEVICE TallTile<E>& x_tile(const TileStep& step, int stage) const { return s.x()[resident ? step.k : stage]; }

  // Everything that a step needs and is not there yet, into a stage that nobody reads any more.
  XLSTM_DEVICE void load(const TileStep& step, int stage) const {
    Stage<E>& to = s.ring[stage];
    const int column = s.at.first_column + step.n * kTileRows;
    if (step.phase == Phase::values) {
      load_tile<kCalls>(to.wide, s.Z, step.tile * kTileRows + step.k * kDepth, column);
      return;
    }
    if (step.phase == Phase::scores) {
      load_tile<kCalls>(to.tall, s.Y, step.tile * kTileRows, step.k * kDepth);
      if (step.k == 0) load_columns(step.tile);
    } else if constexpr (kStateTransposed<O>) {
      load_tile<kCalls>(to.wide, s.state, step.k * kDepth, column);
    } else {
      load_tile<kCalls>(to.tall, s.state, column, step.k * kDepth);
    }
    if (resident && !s.schedule.opens_depth(step)) return;
    load_tile<kCalls>(x_tile(step, stage), s.X, s.at.first_row, step.k * kDepth);
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

  // By half of the threads, a row each.
  XLSTM_DEVICE void load_rows() const {
    if (threadIdx.x < kTileRows) load_row<P, O>(s.rows, p, s.at, threadIdx.x, s.schedule.has_state);
  }

  XLSTM_DEVICE void load_n() const {
    const int64_t Dqk = p.shape.head_dim_qk;
    for (int a = threadIdx.x; a < s.schedule.depth * kDepth; a += kTileThreads) {
      s.n(resident)[a] = a < Dqk ? p.normalisers[s.at.slot * Dqk + a] : 0;
    }
  }
};

// ---- scores and their weights ----

// The parts that a key or a query contributes to the weight of a pair (key, query). The index is that in the chunk.
template <class A>
struct Token {
  Pair<A> log;
  int index, start;  // start: of what a query sees
  A iota, rho;       // of a query, with the scale of q
};

// Queries past the chunk see nothing.
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

// blind: for its own token.
template <class A>
XLSTM_DEVICE bool sees(const Token<A>& query, const Token<A>& key, bool blind = false) {
  return query.start <= key.index && key.index + blind <= query.index;
}

// P of a key and a query from their score. Selected, not multiplied by zero: the score may be anything.
template <OutputKind O, bool kAccurate, class A>
XLSTM_DEVICE A weighted(A score, const Token<A>& key, const Token<A>& query, bool visible) {
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
  const auto of_column = [&](int c) { return token_at<O>(columns, c, tile * kTileRows, at, !kQueries, scale); };
  const auto visible = [&](const Token<A>& in_row, const Token<A>& in_column) {
    return kQueries ? sees(in_row, in_column, blind) : sees(in_column, in_row, blind);
  };
  const auto weigh_where = [&](auto is_visible) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const Token<A> column = of_column(8 * j + 2 * lane_pair() + e);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          A& score = scores[j][2 * half + e];
          const Token<A>& key = kQueries ? column : of_row[half];
          const Token<A>& query = kQueries ? of_row[half] : column;
          score = weighted<O, kAccurate>(score, key, query, is_visible(of_row[half], column));
          if (O == OutputKind::h) sums[half] += score;
        }
      }
    }
  };
  // Starts never decrease: where the first and the last ones see each other, all do. That is off the diagonal.
  const bool all =
      kCheapDecay<kAccurate, A> && visible(of_row[0], of_column(kTileRows - 1)) && visible(of_row[1], of_column(0));
  if (kCheapDecay<kAccurate, A> && __all_sync(~0u, all)) {
    weigh_where([](const Token<A>&, const Token<A>&) { return true; });
  } else {
    weigh_where(visible);
  }
}

// ---- results ----

// A state that a boundary cuts off may hold anything.
template <class A>
XLSTM_DEVICE A times_weight(A x, A weight) {
  return weight == 0 ? 0 : weight * x;
}

// What becomes of a row's accumulators: times `scale`, plus `of_n` times n.
template <class A>
struct Finish {
  A scale, of_n;
};

}  // namespace
}  // namespace xlstm::cuda
