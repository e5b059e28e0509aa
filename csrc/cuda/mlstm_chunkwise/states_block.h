#pragma once
// What walks the chunks of a sequence with a tile of C: which tokens come when, their weights, and the tile itself, in
// the accumulators of four warps. states.cu has the kernel of mma, states_wgmma.cu that of wgmma.
#include "cuda/mlstm_chunkwise/segments.h"
#include "cuda/mlstm_chunkwise/states.h"
#include "cuda/mlstm_chunkwise/tile.h"
#include "cuda/mlstm_chunkwise/weights.h"

namespace xlstm::cuda {
namespace {

using namespace device;

// Four warps that have a tile of 64 rows: a block, or a warpgroup of one.
constexpr int kTeamWarps = kTileThreads / 32;
XLSTM_DEVICE int thread_of_team() {
  return static_cast<int>(threadIdx.x % kTileThreads);
}

// What they share.
template <class A>
struct Team {
  A (&dots)[kTeamWarps];
  int barrier;

  XLSTM_DEVICE void sync(bool left_out = false) const {
    if (!left_out) barrier_sync(barrier, kTileThreads);
  }
};

// Of the tokens of a span, in C and in n.
template <class A, int kCount>
struct Weights {
  A C[kCount], n[kCount];
};

// The tile of C that a block walks with, and what it walks.
struct Block {
  Sequence tokens;
  int64_t head, state, batch_head;  // state: index into (N, H); batch_head: into (B, H)
  int64_t slot;                     // of the first chunk, in (B, H, slots)
  int length, chunks;               // of the sequence
  int segment;                      // in the order of the walk
  Segment range;                    // its chunks
  int tile, tiles;                  // among those of the head
  int first_row, first_column;
};

// The chunks of a segment, which is given by its place in the order of the walk.
template <class A>
XLSTM_DEVICE Segment chunks_of(const MlstmStatesParams<A>& p, int chunks, int segment) {
  return find_segment(chunks, p.segments, p.backward ? p.segments - 1 - segment : segment);
}

// state: index into (N, H). tile: of 64 rows and kColumns columns, of `tiles`, row by row.
template <int kColumns, class A>
XLSTM_DEVICE Block locate(const MlstmStatesParams<A>& p, int state, int tile, int tiles, int column_tiles) {
  Block block;
  block.tile = tile, block.tiles = tiles;
  block.state = state;
  block.head = block.state % p.shape.num_heads;
  const int64_t sequence = block.state / p.shape.num_heads;
  block.tokens = find_sequence(p.shape, sequence);
  block.batch_head = block.tokens.row * p.shape.num_heads + block.head;
  block.slot = block.batch_head * chunk_slots(p.shape, p.chunk_size) + first_slot(p.shape, p.chunk_size, sequence);
  block.length = static_cast<int>(block.tokens.end - block.tokens.begin);
  block.chunks = (block.length + p.chunk_size - 1) / p.chunk_size;
  block.segment = static_cast<int>(blockIdx.y);
  block.range = chunks_of(p, block.chunks, block.segment);
  block.first_row = block.tile / column_tiles * kTileRows;
  block.first_column = block.tile % column_tiles * kColumns;
  return block;
}

// ---- the walk: which tokens come when ----

// Up to kTokens tokens of a chunk, counted from the sequence's first; none of them where a boundary cuts all off.
template <class A>
struct TokenSpan {
  int chunk = -1, first = 0, count = 0;  // chunk -1: the walk is over
  bool opens = false;                    // the chunk's first span
  A g_bar = 0;                           // where it opens
};

template <class A>
class Walk {
 public:
  XLSTM_DEVICE Walk(const MlstmStatesParams<A>& p_, const Block& block_, int tokens_per_span_)
      : p(p_),
        block(block_),
        tokens_per_span(tokens_per_span_),
        chunk(p_.backward ? block_.range.end : block_.range.first - 1) {
    start = start_of_last(chunk + direction());
  }

  XLSTM_DEVICE TokenSpan<A> next() {
    TokenSpan<A> span;
    if (position >= end && !open_chunk(span)) return span;
    span.chunk = chunk;
    span.first = position;
    span.count = min(tokens_per_span, end - position);
    position += tokens_per_span;
    return span;
  }

 private:
  const MlstmStatesParams<A>& p;
  const Block& block;
  int tokens_per_span, chunk, position = 0, end = 0;
  int start;  // of the last token of the chunk that comes next: loaded a chunk ahead, and not touched until then

  XLSTM_DEVICE int direction() const { return p.backward ? -1 : 1; }
  XLSTM_DEVICE bool exists(int c) const { return c >= block.range.first && c < block.range.end; }
  XLSTM_DEVICE int chunk_end(int c) const { return min((c + 1) * p.chunk_size, block.length); }
  // GateVectors::start; below zero where there is no boundary.
  XLSTM_DEVICE int start_of(int token) const {
    return p.gates.start[block.batch_head * p.shape.seqlen + block.tokens.begin + token];
  }
  XLSTM_DEVICE int start_of_last(int c) const { return exists(c) ? start_of(chunk_end(c) - 1) : -1; }

  // Goes to the next chunk's tokens that reach the state after it, or backward, that the state before it reaches: no
  // weight has to be masked, and nothing that is cut off is read.
  XLSTM_DEVICE bool open_chunk(TokenSpan<A>& span) {
    const bool cut = !XLSTM_MUTANT("mlstm_states: boundaries ignored") && start >= 0;
    const int last_start = start - static_cast<int>(block.tokens.begin);
    chunk += direction();
    if (!exists(chunk)) return false;
    start = start_of_last(chunk + direction());
    position = chunk * p.chunk_size;
    end = chunk_end(chunk);
    if (cut && p.backward) end = first_boundary(position, last_start);
    if (cut && !p.backward) position = last_start;
    span.opens = true;
    span.g_bar = p.gates.g_bar[block.slot + chunk];
    return true;
  }

  // In [first, last], of tokens where `last` is a boundary.
  XLSTM_DEVICE int first_boundary(int first, int last) const {
    while (first < last) {
      const int middle = (first + last) / 2;
      if (start_of(middle) < 0) {
        first = middle + 1;
      } else {
        last = middle;
      }
    }
    return first;
  }
};

// The gate values from which a thread computes the weight of its token, as they are loaded: who touches one waits.
template <class A>
struct TokenGates {
  Pair<A> y, z;          // the weight is 2^(y - z) ..
  A C_factor, n_factor;  // .. times these and the scale
};

// Of the factors.
template <class A>
XLSTM_DEVICE A scale_of(const MlstmStatesParams<A>& p) {
  return opaque(p.backward ? static_cast<A>(p.scale) : A{1});
}

template <class A>
XLSTM_DEVICE TokenGates<A> load_gates(const MlstmStatesParams<A>& p, const Block& block, const TokenSpan<A>& span) {
  TokenGates<A> gates = {};  // weight 0 past the last token
  if (thread_of_team() >= span.count) return gates;
  const int64_t begin = block.batch_head * p.shape.seqlen + block.tokens.begin,
                at = begin + span.first + thread_of_team();
  if (p.backward) {  // b_bar
    gates = {p.gates.M[block.slot + span.chunk], p.gates.z[at], p.iota[at], p.rho[at]};
  } else {  // a_bar
    const int last = min((span.chunk + 1) * p.chunk_size, block.length) - 1;
    gates = {p.gates.y[at], p.gates.z[begin + last], 1, 1};
  }
  return gates;
}

template <Product P, class A, int kCount>
XLSTM_DEVICE void store_weights(Weights<A, kCount>& to, const TokenGates<A>& gates, A scale) {
  const int token = thread_of_team();
  if (token >= kCount) return;
  const A weight = decay<P == Product::tf32x3>(gates.y, gates.z);
  to.C[token] = weight * (scale * gates.C_factor);
  to.n[token] = weight * (scale * gates.n_factor);
}

// ---- the tile of C, and the rows of n ----

// Accumulators of a warp's 16 rows. n: this lane's part of rows g and g + 8, in blocks of the first columns.
template <Product P, int kColumns>
struct State {
  using A = Accumulator<P>;
  A C[kColumns / kTileRows][kTileRows / 8][4];
  A n[2];
};

// The first of this lane's two rows; the other one is 8 further.
XLSTM_DEVICE int row_of_lane(const Block& block) {
  return block.first_row + thread_of_team() / 32 * 16 + lane_group();
}

// visit(index, left, x, y, z, w) for the warp's tile, 16 columns of a row at a time. index: of the first one in
// (Dqk, Dv); left: columns of the row from there on, none where it is outside; x, y and z, w: this lane's RowPart.
template <Product P, int kColumns, class Visit>
XLSTM_DEVICE void for_rows(State<P, kColumns>& state, const MlstmShape& shape, const Block& block, Visit visit) {
  const int64_t dv = shape.head_dim_v;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = row_of_lane(block) + 8 * half;
    const int64_t index = row * dv + block.first_column;
    const int left = row < shape.head_dim_qk ? static_cast<int>(dv) - block.first_column : 0;
#pragma unroll
    for (int j = 0; j < kColumns / kTileRows; ++j) {
#pragma unroll
      for (int b = 0; b < kTileRows / 8; b += 2) {
        const int step = j * kTileRows + b * 8;
        auto *d = state.C[j][b] + 2 * half, *e = state.C[j][b + 1] + 2 * half;
        visit(index + step, left - step, d[0], d[1], e[0], e[1]);
      }
    }
  }
}

// Whether the block's part of a matrix at C is there as a whole, in rows that are aligned.
template <int kColumns, class T>
XLSTM_DEVICE bool is_whole(const MlstmShape& shape, const Block& block, const T* C) {
  using Access = typename RowPart<T>::Access;
  return block.first_row + kTileRows <= shape.head_dim_qk && block.first_column + kColumns <= shape.head_dim_v &&
         shape.head_dim_v % Access::kCount == 0 && aligned_for<Access>(C);
}

XLSTM_DEVICE bool has_n(const Block& block) {
  return block.first_column == 0;
}

template <Product P, int kColumns>
XLSTM_DEVICE void scale_state(State<P, kColumns>& state, Accumulator<P> g) {
  const auto scaled = [g](Accumulator<P> x) { return g == 0 ? Accumulator<P>{0} : g * x; };
#pragma unroll
  for (auto& tile : state.C) {
#pragma unroll
    for (auto& d : tile) {
#pragma unroll
      for (auto& x : d) x = scaled(x);
    }
  }
  for (auto& x : state.n) x = scaled(x);
}

// take(x, y) for each value x of the state and y of matrices at C (Dqk, Dv) and n (Dqk); null: zero.
template <Product P, int kColumns, class A, class Take>
XLSTM_DEVICE void take_state(State<P, kColumns>& state, const MlstmShape& shape, const Block& block, const A* C,
                             const A* n, Take take) {
  const bool whole = C && is_whole<kColumns>(shape, block, C);
  for_rows(state, shape, block, [&](int64_t index, int left, A& x, A& y, A& z, A& w) {
    RowPart<A> part = {};
    if (whole) {
      part.load(C + index);
    } else if (C) {
      part.load(C + index, left);
    }
    take(x, part.pairs[0].x[0]), take(y, part.pairs[0].x[1]), take(z, part.pairs[1].x[0]), take(w, part.pairs[1].x[1]);
  });
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = row_of_lane(block) + 8 * half;
    take(state.n[half], n && row < shape.head_dim_qk && lane_pair() == 0 ? n[row] : A{0});
  }
}

template <Product P, int kColumns, class A, class T>
XLSTM_DEVICE void store_state(State<P, kColumns>& state, const MlstmShape& shape, const Block& block, T* C, A* n) {
  const auto part_of = [](A x, A y, A z, A w) { return RowPart<T>{{narrow_two<T>(x, y), narrow_two<T>(z, w)}}; };
  if (is_whole<kColumns>(shape, block, C)) {
    for_rows(state, shape, block,
             [&](int64_t index, int, A x, A y, A z, A w) { part_of(x, y, z, w).store(C + index); });
  } else {
    for_rows(state, shape, block,
             [&](int64_t index, int left, A x, A y, A z, A w) { part_of(x, y, z, w).store(C + index, left); });
  }
  if (!has_n(block)) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = row_of_lane(block) + 8 * half;
    const A sum = sum_of_row(state.n[half]);
    if (row < shape.head_dim_qk && lane_pair() == 0) n[row] = sum;
  }
}

// ---- backward: <dC, C> + <dn, n> ----

// This lane's part of <dC, C>.
template <Product P, int kColumns, class A = Accumulator<P>, class T>
XLSTM_DEVICE A dot_of_tile(State<P, kColumns>& state, const MlstmShape& shape, const Block& block, const T* C) {
  A sum = 0;
  const auto add = [&](A d, T c) { sum += d * widen<A>(c); };
  if (is_whole<kColumns>(shape, block, C)) {
    for_rows(state, shape, block, [&](int64_t index, int, A x, A y, A z, A w) {
      RowPart<T> part;
      part.load(C + index);
      add(x, part.pairs[0].x[0]), add(y, part.pairs[0].x[1]), add(z, part.pairs[1].x[0]), add(w, part.pairs[1].x[1]);
    });
  } else {
    for_rows(state, shape, block, [&](int64_t index, int left, A x, A y, A z, A w) {
      RowPart<T> part;
      part.load(C + index, left);
      const int column = 2 * lane_pair();  // what lies past the last one may be a NaN
      if (column < left) add(x, part.pairs[0].x[0]);
      if (column + 1 < left) add(y, part.pairs[0].x[1]);
      if (column + 8 < left) add(z, part.pairs[1].x[0]);
      if (column + 9 < left) add(w, part.pairs[1].x[1]);
    });
  }
  return sum;
}

// Of the team's tile: written by its first thread.
template <Product P, int kColumns, class A, class T>
XLSTM_DEVICE void store_dot(State<P, kColumns>& state, const Team<A>& team, const MlstmShape& shape, const Block& block,
                            const T* C, const A* n, A* to) {
  A sum = dot_of_tile(state, shape, block, C);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = row_of_lane(block) + 8 * half;
    if (has_n(block) && row < shape.head_dim_qk) sum += state.n[half] * n[row];
  }
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (threadIdx.x % 32 == 0) team.dots[thread_of_team() / 32] = sum;
  team.sync(XLSTM_MUTANT("mlstm_states: no barrier before the dots of warps"));
  if (thread_of_team() != 0) return;
  sum = 0;
  for (const A part : team.dots) sum += part;
  *to = sum;
}

// With the state at the chunk's end, which the next chunk's slot holds.
template <Product P, int kColumns, class A>
XLSTM_DEVICE void store_chunk_dot(State<P, kColumns>& state, const Team<A>& team, const MlstmStatesParams<A>& p,
                                  const Block& block, int chunk) {
  const int64_t dqk = p.shape.head_dim_qk, size = dqk * p.shape.head_dim_v;
  const int64_t slot = block.slot + chunk;
  A* to = p.chunk_dots + slot * block.tiles + block.tile;
  if (chunk == block.chunks - 1) {
    store_dot(state, team, p.shape, block, p.final_state.C + block.state * size, p.final_state.n + block.state * dqk,
              to);
  } else {
    const int64_t next = XLSTM_MUTANT("mlstm_states: dots with the state before a chunk") ? slot : slot + 1;
    const Element<P>* C = static_cast<const Element<P>*>(p.forward_states) + next * size;
    store_dot(state, team, p.shape, block, C, p.forward_normalisers + next * dqk, to);
  }
}

template <Product P, int kColumns, class A>
XLSTM_DEVICE void store_start_dot(State<P, kColumns>& state, const Team<A>& team, const MlstmStatesParams<A>& p,
                                  const Block& block) {
  const int64_t dqk = p.shape.head_dim_qk, size = dqk * p.shape.head_dim_v;
  A* to = p.start_dots + block.state * block.tiles + block.tile;
  if (p.initial_state.C) {
    team.sync();  // the dots of the last chunk have been read
    store_dot(state, team, p.shape, block, p.initial_state.C + block.state * size,
              p.initial_state.n + block.state * dqk, to);
  } else if (thread_of_team() == 0) {
    *to = 0;
  }
}

// ---- segments ----

// What is left of a state behind these chunks. Where one of them cuts it off that is nothing, even if another has a
// NaN.
template <class A>
XLSTM_DEVICE A decay_over(const MlstmStatesParams<A>& p, const Block& block, const Segment& range) {
  const bool plain = XLSTM_MUTANT("mlstm_states: a NaN crosses the boundary of a segment");
  const auto product = [plain](A x, A y) { return !plain && (x == 0 || y == 0) ? A{0} : x * y; };
  A decay = 1;
#pragma unroll 1
  for (int chunk = range.first + threadIdx.x % 32; chunk < range.end; chunk += 32) {
    decay = product(decay, p.gates.g_bar[block.slot + chunk]);
  }
  for (int step = 16; step > 0; step /= 2) decay = product(decay, __shfl_xor_sync(~0u, decay, step));
  return decay;
}

// Index of a segment's own state into (segments - 1, N, H).
template <class A>
XLSTM_DEVICE int64_t own_state(const MlstmStatesParams<A>& p, const Block& block, int segment) {
  return segment * (p.shape.num_sequences * p.shape.num_heads) + block.state;
}

// The state where the walk begins: of the sequence, or none.
template <Product P, int kColumns, class A>
XLSTM_DEVICE void load_start(State<P, kColumns>& state, const MlstmStatesParams<A>& p, const Block& block, bool alone) {
  const int64_t dqk = p.shape.head_dim_qk, size = dqk * p.shape.head_dim_v;
  const bool empty = alone && !XLSTM_MUTANT("mlstm_states: a segment by itself starts from the sequence's start");
  const MlstmState<const A> from = empty ? MlstmState<const A>{} : p.start;
  take_state(state, p.shape, block, from.C ? from.C + block.state * size : nullptr,
             from.n ? from.n + block.state * dqk : nullptr, [](A& x, A y) { x = y; });
}

// From the sequence's start to that of the segment.
template <Product P, int kColumns, class A>
XLSTM_DEVICE void pass_segments(State<P, kColumns>& state, const MlstmStatesParams<A>& p, const Block& block) {
  const int64_t dqk = p.shape.head_dim_qk, size = dqk * p.shape.head_dim_v;
#pragma unroll 1
  for (int i = 0; i < block.segment; ++i) {
    const int segment = XLSTM_MUTANT("mlstm_states: segments in the wrong order") ? block.segment - 1 - i : i;
    const A decay = decay_over(p, block, chunks_of(p, block.chunks, segment));
    scale_state(state, XLSTM_MUTANT("mlstm_states: no decay over a segment") ? A{1} : decay);
    const int64_t own = own_state(p, block, segment);
    take_state(state, p.shape, block, p.own.C + own * size, p.own.n + own * dqk, [](A& x, A y) { x += y; });
  }
}

// Stores the state before the chunk (backward: after it).
template <Product P, int kColumns, class A>
XLSTM_DEVICE void store_chunk(State<P, kColumns>& state, const Team<A>& team, const MlstmStatesParams<A>& p,
                              const Block& block, const TokenSpan<A>& span) {
  const int64_t slot = block.slot + span.chunk, dqk = p.shape.head_dim_qk;
  if (XLSTM_MUTANT("mlstm_states: the state decays before it is stored")) scale_state(state, span.g_bar);
  Element<P>* C = static_cast<Element<P>*>(p.states) + slot * dqk * p.shape.head_dim_v;
  store_state(state, p.shape, block, C, p.normalisers + slot * dqk);
  if (p.backward) store_chunk_dot(state, team, p, block, span.chunk);
}

// Stores the state where the walk ends, if that is at the end of the sequence, or of a segment by itself.
template <Product P, int kColumns, class A>
XLSTM_DEVICE void store_end(State<P, kColumns>& state, const Team<A>& team, const MlstmStatesParams<A>& p,
                            const Block& block, bool alone) {
  const int64_t dqk = p.shape.head_dim_qk, size = dqk * p.shape.head_dim_v;
  const bool last = block.segment == p.segments - 1 || XLSTM_MUTANT("mlstm_states: every segment stores the end");
  if (!alone && !last) return;
  const MlstmState<A>& to = alone ? p.own : p.end;
  const int64_t at = alone ? own_state(p, block, block.segment) : block.state;
  store_state(state, p.shape, block, to.C + at * size, to.n + at * dqk);
  if (p.backward && !alone) store_start_dot(state, team, p, block);
}

}  // namespace
}  // namespace xlstm::cuda
