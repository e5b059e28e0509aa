#pragma once
// Rows of the forward scan between memory and the tiles of its warps (warp_tile.h): x of steps to come comes in,
// results of the step before go out. All warps with cells do it, between their product and their cells. Or, where
// registers are left for one warp more (S::kHasMover), that one does, and nothing else: ForwardMover.
#include "cuda/recurrent/exchange.h"

namespace xlstm::cuda {

template <class S>
struct ForwardTiles {
  using T = typename S::T;
  GroupTiles<T, kGates, S::kRing> x[S::kGroups];
  GroupTiles<T, kSaved + 1, S::kResultBuffers> results[S::kGroups];  // the saved values and h; in turn

  XLSTM_DEVICE static int buffer(int turn) {
    return S::kResultBuffers == 1 || XLSTM_MUTANT("resident_fwd: one buffer of results") ? 0 : turn;
  }
};

// What a thread does for the rows of `Moved` (warp_tile.h).
template <class S, class Moved>
class ForwardRows {
  using T = typename S::T;
  static constexpr bool kRoomy = S::kRoomy;

 public:
  XLSTM_DEVICE ForwardRows(const RecurrentForwardParams<void>& params, const Team& of, ForwardTiles<S>& tiles,
                           const Rows<S>& of_rows, bool stores_h)
      : p(params), team(of), s(tiles), rows(of_rows) {
    const Moved at;
    const int first = team.rank * S::kUnits + at.group * kWarpUnits;
    const int64_t D = p.shape.head_dim, hidden = p.shape.hidden(), of_hidden = team.head * D + first;
    T *const saved = static_cast<T*>(p.saved) + of_hidden, *const h = static_cast<T*>(p.h) + of_hidden;
    const bool fifth = at.part == 0, stores_last = fifth ? p.saved != nullptr : at.part == 1 && !stores_h;
    x_from = static_cast<const T*>(p.x.data) + at.part * p.x.gate + team.head * p.x.head + first;
    saved_to = saved + at.part * hidden;
    last_to = fifth ? saved + (kSaved - 1) * hidden : h;
    saved_stride = static_cast<uint32_t>(kSaved * hidden);
    last_stride = fifth ? saved_stride : static_cast<uint32_t>(hidden);
    saved_units = p.saved ? moved_units() : 0, last_units = stores_last ? moved_units() : 0;
    // Held in registers: the compiler would compute them anew in every step.
    saved_to = device::opaque(saved_to), last_to = device::opaque(last_to);
    if (kRoomy) {
      x_from = device::opaque(x_from);
      saved_stride = device::opaque(saved_stride), last_stride = device::opaque(last_stride);
      saved_units = device::opaque(saved_units), last_units = device::opaque(last_units);
    }
  }

  // Once the lengths of rows are known: x of the first steps comes in.
  XLSTM_DEVICE void start() {
    const int64_t D = p.shape.head_dim;
    const bool vectors = consist_of<device::Vector<T>>(p.h, D) && consist_of<device::Vector<T>>(p.saved, D);
    access = {pieces_of<T>(p.x.data, D, p.x.batch, p.x.time, p.x.gate, p.x.head), vectors, rows.are_plain()};
    for (unsigned i = 0; i < S::kRing; ++i) fetch_x(i, kBatchTile);
    wait_for_x();
  }

  // In a step: results of the one before it, if there is one, and x into a slot of the ring. turn: of this step's
  // results.
  XLSTM_DEVICE void move(const Position& before, unsigned slot, int turn) {
    if (before.t >= 0) store(before, turn);
    if (S::kStartsWithX || before.t >= 0) fetch_x(slot, rows.count(ahead.tile));
  }

  // All x but the latest kRing - 2: what is read after the next barrier.
  XLSTM_DEVICE void wait_for_x() {
    if (!XLSTM_MUTANT("resident_fwd: x read before it has landed")) device::cp_async_wait<S::kRing - 2>();
  }

  // Of the step before: a thread stores its part and batch rows, and those of the first two the parts that are left.
  XLSTM_DEVICE void store(const Position& before, int turn) {
    const int buffer = ForwardTiles<S>::buffer(turn ^ 1);
    Moved().each_row(rows.count(before.tile), [&](int row) { store_row_of(before.t, before.tile, row, buffer); });
  }

 protected:
  const RecurrentForwardParams<void>& p;
  const Team& team;
  ForwardTiles<S>& s;
  const Rows<S> rows;
  Position ahead;  // of the x to be fetched next

  // last: the fifth saved value, or h.
  const T* x_from;
  T *saved_to, *last_to;
  uint32_t saved_stride, last_stride;
  int saved_units, last_units;  // to be stored, of 8
  RowAccess access;

  // That exist, of the 8 of the rows that this thread moves.
  XLSTM_DEVICE int moved_units() const {
    return static_cast<int>(p.shape.head_dim) - team.rank * S::kUnits - Moved().group * kWarpUnits;
  }

  // x of a step to come: of a gate and batch rows. Past the last step, zeros.
  XLSTM_DEVICE void fetch_x(unsigned to, int count) {
    Moved().each_row(count, [&](int row) { fetch_row_of(to, row); });
    device::cp_async_commit();
    ahead.next(team.tiles);
  }

  XLSTM_DEVICE void fetch_row_of(unsigned to, int at_row) {
    const Moved at;
    T(&row)[kWarpUnits] = s.x[at.group].tile[to].x[at.part][at_row];
    if (access.is_plain()) {
      const bool exists = rows.exists(ahead.tile, at_row) || XLSTM_MUTANT("resident_fwd: x of rows that are none");
      const int64_t offset = rows.plain_offset(ahead.tile, at_row, ahead.t, p.x.batch, p.x.time);
      fetch_row<device::Vector<T>>(row, x_from + offset,
                                   exists && ahead.t < static_cast<int>(p.shape.seqlen) ? moved_units() : 0);
    } else {
      const int count = ahead.t < rows.length(ahead.tile, at_row) ? moved_units() : 0;
      const T* from = x_from + rows.offset(ahead.tile, at_row, ahead.t, p.x.batch, p.x.time);
      if (access.inputs() == Pieces::vectors) {
        fetch_row<device::Vector<T>>(row, from, count);
      } else if (sizeof(T) > 2 || (kRoomy && access.inputs() == Pieces::words)) {  // at 128 registers words spill
        fetch_row<Word<T>>(row, from, count);
      } else {
        RowElements<T>(from, count).write(row);
      }
    }
  }

  XLSTM_DEVICE void store_row_of(int t, int tile, int row, int buffer) {
    const Moved at;
    const auto& from = s.results[at.group].tile[buffer].x;
    const bool exists = rows.exists(tile, row) || XLSTM_MUTANT("resident_fwd: rows past the batch");
    const int of_saved = exists ? saved_units : 0, of_last = exists ? last_units : 0;
    const T(&first)[kWarpUnits] = from[at.part][row], (&last)[kWarpUnits] = from[kSaved - 1 + at.part % 2][row];
    const auto store_vectors = [&](auto find_token) {
      const RowVectors<T> of_first(first), of_second(last);
      const uint64_t token = find_token();
      of_first.store(saved_to + token * saved_stride, of_saved);
      of_second.store(last_to + token * last_stride, of_last);
    };
    if (access.is_plain()) {
      store_vectors([&] { return rows.plain_index(tile, row, t); });
    } else if (access.vector_results()) {
      store_vectors([&] { return index_of_result(tile, row, t); });
    } else {
      const uint64_t token = index_of_result(tile, row, t);
      store_row(saved_to + token * saved_stride, first, of_saved);
      store_row(last_to + token * last_stride, last, of_last);
    }
  }
  XLSTM_DEVICE uint64_t index_of_result(int tile, int row, int t) const {
    if (XLSTM_MUTANT("resident_fwd: no row ends early")) return rows.plain_index(tile, row, t);
    return rows.index(tile, row, t);
  }
};

// Of a thread whose rows another warp moves.
template <class S>
struct MovedByAnother {
  XLSTM_DEVICE MovedByAnother(const RecurrentForwardParams<void>&, const Team&, ForwardTiles<S>&, const Rows<S>&,
                              bool) {}
  XLSTM_DEVICE void start() {}
  XLSTM_DEVICE void move(const Position&, unsigned, int) {}
  XLSTM_DEVICE void wait_for_x() {}
  XLSTM_DEVICE void store(const Position&, int) {}
};

template <class S>
using ForwardRowsOfCells = std::conditional_t<S::kHasMover, MovedByAnother<S>, ForwardRows<S, MovedRow<S::kGroups>>>;

// The warp that moves rows while others compute. All meet once a step: then x that was read leaves its place to other,
// and results of the step before are there.
template <class S>
class ForwardMover : ForwardRows<S, MovedRows<S::kGroups>> {
  using T = typename S::T;
  using Moved = MovedRows<S::kGroups>;
  using Base = ForwardRows<S, Moved>;
  using Base::access, Base::ahead, Base::p, Base::rows, Base::s, Base::team;

 public:
  XLSTM_DEVICE ForwardMover(const RecurrentForwardParams<void>& params, const Team& of, ForwardTiles<S>& tiles,
                            RowLengths<S::kTiles>& lengths)
      : Base(params, of, tiles, Rows<S>(lengths, params.shape, of), false) {}

  XLSTM_DEVICE void run() {
    __syncthreads();  // weights have passed
    __syncthreads();  // lengths are there
    Base::start();
    __syncthreads();
    if (access.is_plain()) {
      run_steps([&](const Position& before, unsigned slot, int turn) {
        if (before.t >= 0) store_plain(before, turn);
        fetch_plain(slot);
      });
    } else {
      run_steps([&](const Position& before, unsigned slot, int turn) { Base::move(before, slot, turn); });
    }
    device::cp_async_wait<0>();
  }

 private:
  const int seqlen = static_cast<int>(p.shape.seqlen);

  template <class Move>
  XLSTM_DEVICE void run_steps(Move move) {
    Position before{-1, 0};
    unsigned slot = 0;
    int turn = 0;
#pragma unroll 1
    for (Position at; at.t < seqlen; at.next(team.tiles)) {
      device::sync_threads(XLSTM_MUTANT("resident_fwd: rows moved before all warps are ready"));
      move(before, slot, turn);
      if (!XLSTM_MUTANT("resident_fwd: the mover does not wait for x")) Base::wait_for_x();
      slot = (slot + 1) % S::kRing, turn ^= 1;
      before = at;
    }
    __syncthreads();
    if (seqlen > 0) Base::store(before, turn);
  }

  // Of 8 units of a row, in vectors, all exist or none.
  XLSTM_DEVICE int count_of(int tile, int units) const {
    return units <= 0                                                          ? 0
           : XLSTM_MUTANT("resident_fwd: the mover takes rows past the batch") ? kBatchTile
                                                                               : rows.count(tile);
  }

  XLSTM_DEVICE void store_plain(const Position& before, int turn) const {
    const Moved at;
    const auto& from = s.results[at.group].tile[Base::s.buffer(turn ^ 1)].x;
    const uint64_t token = rows.plain_index(before.tile, 0, before.t), length = static_cast<uint32_t>(seqlen);
    store_rows<kWarpUnits>(Base::saved_to + token * Base::saved_stride, from[at.part][0], length * Base::saved_stride,
                           count_of(before.tile, Base::saved_units));
    store_rows<kWarpUnits>(Base::last_to + token * Base::last_stride, from[kSaved - 1 + at.part % 2][0],
                           length * Base::last_stride, count_of(before.tile, Base::last_units));
  }

  XLSTM_DEVICE void fetch_plain(unsigned slot) {
    const Moved at;
    const T* from = Base::x_from + rows.plain_offset(ahead.tile, 0, ahead.t, p.x.batch, p.x.time);
    const int count = ahead.t < seqlen ? count_of(ahead.tile, Base::moved_units()) : 0;
    fetch_rows<kWarpUnits>(s.x[at.group].tile[slot].x[at.part][0], from, p.x.batch, count);
    device::cp_async_commit();
    ahead.next(team.tiles);
  }
};

}  // namespace xlstm::cuda
