#pragma once
// Rows of the backward scan between memory and shared memory: saved values and dh of steps to come come in, dx goes
// out. All warps with cells do it, while the product is at work. Or, where registers are left for one warp more
// (C::kHasMover), that one does, and nothing else: BwdMover.
#include "cuda/recurrent/warp_tile.h"

namespace xlstm::cuda {
namespace {

using namespace device;

constexpr int kInputs = kSaved + 1;  // the saved values and dh

template <class C>
using InputTiles = GroupTiles<typename C::T, kInputs, C::kRing>[C::kGroups];
template <class C>
using DrawRows = typename C::T[kBatchTile][C::kPitch];

// What a thread does for the rows of `Moved` (warp_tile.h).
template <class C, class Moved>
class BwdRows {
  using T = typename C::T;
  static constexpr bool kRoomy = C::kRoomy;
  static constexpr bool kGathers = C::kVariant == Variant::grid;  // then dx is where blocks read d raw of others

 public:
  XLSTM_DEVICE BwdRows(InputTiles<C>& tiles, const RecurrentBackwardParams<void>& params, const Team& of,
                       const BatchRows<C::kTiles>& of_rows)
      : inputs(tiles), p(params), team(of), rows(of_rows) {
    const Moved at;
    const int first = team.rank * C::kUnits + at.group * kWarpUnits;
    const int64_t D = p.shape.head_dim, hidden = p.shape.hidden(), of_hidden = team.head * D + first;
    moved_units = static_cast<int>(D) - first;
    const T *const saved = static_cast<const T*>(p.saved) + of_hidden, *const dh =
                                                                           static_cast<const T*>(p.dh) + of_hidden;
    const bool fifth = at.part == 0;
    saved_from = saved + at.part * hidden;
    last_from = fifth ? saved + (kSaved - 1) * hidden : dh;
    dx_to = static_cast<T*>(p.dx) + at.part * hidden + of_hidden;
    saved_stride = static_cast<uint32_t>(kSaved * hidden), dx_stride = static_cast<uint32_t>(kGates * hidden);
    last_stride = fifth ? saved_stride : static_cast<uint32_t>(hidden);
    // Held in registers: the compiler would compute them anew in every step.
    saved_from = opaque(saved_from), last_from = opaque(last_from);
    if (!kGathers) dx_to = opaque(dx_to);
    if (kRoomy) saved_stride = opaque(saved_stride), last_stride = opaque(last_stride);
    if (kRoomy && !kGathers) dx_stride = opaque(dx_stride);
  }

  // Once the lengths of rows are known.
  XLSTM_DEVICE void find_access() {
    const int64_t D = p.shape.head_dim;
    const Pieces of_saved = pieces_of<T>(p.saved, D), of_dh = pieces_of<T>(p.dh, D);
    access = {of_saved > of_dh ? of_saved : of_dh, consist_of<Vector<T>>(p.dx, D), rows.are_plain()};
  }

  // Inputs of the first steps.
  XLSTM_DEVICE void fetch_first() {
    for (unsigned i = 0; i < C::kRing; ++i) fetch(i, kBatchTile);
  }
  XLSTM_DEVICE void wait_for_first() const { cp_async_wait<C::kRing - 1>(); }

  // What the next step does not wait for: dx goes out, and inputs of a later step come into a slot of the ring.
  XLSTM_DEVICE void move(int t, int tile, const DrawRows<C>& draw, unsigned slot) {
    Moved().each_row(rows.count(tile), [&](int row) { store_dx_of(t, tile, row, draw); });
    fetch(slot, rows.count(ahead.tile));
  }

  // Those of the next step: a barrier follows, for other warps read them.
  XLSTM_DEVICE void wait_for_inputs() const {
    constexpr int kUnderWay = C::kRing > 1 ? C::kRing - 2 : 0;
    if (!XLSTM_MUTANT("resident_bwd: inputs read before they have landed")) cp_async_wait<kUnderWay>();
  }

 protected:
  InputTiles<C>& inputs;
  const RecurrentBackwardParams<void>& p;
  const Team team;
  const BatchRows<C::kTiles> rows;
  Position ahead;  // of the inputs to be fetched next, in steps

  // last: the fifth saved value, or dh.
  const T *saved_from, *last_from;
  T* dx_to;
  uint32_t saved_stride, last_stride, dx_stride;
  int moved_units;  // that exist, of 8
  RowAccess access;

 private:
  // Of a step to come: a thread takes batch rows of a saved value; those of the first two also what is left. Before
  // the first token, past the end of a row and past the batch: zeros.
  XLSTM_DEVICE void fetch(unsigned to, int count) {
    const int t = static_cast<int>(p.shape.seqlen) - 1 - ahead.t, tile = ahead.tile;
    Moved().each_row(count, [&](int row) {
      if (access.is_plain()) {
        fetch_token(to, t, row, rows.plain_index(tile, row, t), Pieces::vectors);
      } else {
        fetch_token(to, t, row, rows.index(tile, row, t), access.inputs());
      }
    });
    cp_async_commit();
    ahead.next(team.tiles);
  }

  XLSTM_DEVICE void fetch_token(unsigned to, int t, int row, uint64_t token, Pieces pieces) {
    const Moved at;
    auto& into = inputs[at.group].tile[to].x;
    T(&first)[kWarpUnits] = into[at.part][row];
    T(&last)[kWarpUnits] = into[kSaved - 1 + at.part % 2][row];
    const bool has_last = at.part < 2;
    const int count = t >= 0 && t < rows.length(ahead.tile, row) ? moved_units : 0;
    const T *const saved = saved_from + token * saved_stride, *const other = last_from + token * last_stride;
    if (pieces == Pieces::vectors) {
      fetch_row<Vector<T>>(first, saved, count);
      if (has_last) fetch_row<Vector<T>>(last, other, count);
    } else if (sizeof(T) > 2 || pieces == Pieces::words) {
      fetch_row<Word<T>>(first, saved, count);
      if (has_last) fetch_row<Word<T>>(last, other, count);
    } else {
      const RowElements<T> of_first(saved, count);
      if (!kRoomy) of_first.write(first);  // there are no registers for both
      const RowElements<T> of_last(other, has_last ? count : 0);
      if (kRoomy) of_first.write(first);
      if (has_last) of_last.write(last);
    }
  }

  // Built anew: there are no registers for what rows of whole vectors do not need.
  XLSTM_DEVICE T* dx_row(int tile, const Moved& at, int at_row, int t) const {
    const uint64_t row = rows.index(tile, at_row, t) * kGates + static_cast<unsigned>(opaque(at.part));
    return static_cast<T*>(p.dx) + row * p.shape.hidden() + team.head * p.shape.head_dim + team.rank * C::kUnits +
           at.group * kWarpUnits;
  }

  XLSTM_DEVICE void store_dx_of(int t, int tile, int at_row, const DrawRows<C>& draw) {
    const Moved at;
    const bool there = rows.exists(tile, at_row) || XLSTM_MUTANT("resident_bwd: rows past the batch");
    const T(&row)[kWarpUnits] =
        *reinterpret_cast<const T(*)[kWarpUnits]>(&draw[at_row][at.part * C::kUnits + at.group * kWarpUnits]);
    const int of_dx = there ? moved_units : 0;
    if (kGathers) {
      // Rows of whole vectors are in dx already: others read them there.
      if (!access.vector_results()) store_row(dx_row(tile, at, at_row, t), row, of_dx);
    } else if (access.is_plain()) {
      const RowVectors<T> values(row);
      values.store(dx_to + rows.plain_index(tile, at_row, t) * dx_stride, of_dx);
    } else {
      const bool in_step = XLSTM_MUTANT("resident_bwd: no row ends early");
      T* to = dx_to + (in_step ? rows.plain_index(tile, at_row, t) : rows.index(tile, at_row, t)) * dx_stride;
      if (access.vector_results()) {
        RowVectors<T>(row).store(to, of_dx);
      } else {
        store_row(to, row, of_dx);
      }
    }
  }
};

// Of a thread whose rows another warp moves.
template <class C>
struct BwdMovedByAnother {
  XLSTM_DEVICE BwdMovedByAnother(InputTiles<C>&, const RecurrentBackwardParams<void>&, const Team&,
                                 const BatchRows<C::kTiles>&) {}
  XLSTM_DEVICE void find_access() {}
  XLSTM_DEVICE void fetch_first() {}
  XLSTM_DEVICE void wait_for_first() const {}
  XLSTM_DEVICE void move(int, int, const DrawRows<C>&, unsigned) {}
  XLSTM_DEVICE void wait_for_inputs() const {}
};

template <class C>
using BwdRowsOfCells = std::conditional_t<C::kHasMover, BwdMovedByAnother<C>, BwdRows<C, MovedRow<C::kGroups>>>;

// The warp that moves rows while others compute. All meet once a step, between its cells and its product: then inputs
// that were read leave their place to others, and d raw is there.
template <class C>
class BwdMover : BwdRows<C, MovedRows<C::kGroups>> {
  using T = typename C::T;
  using Moved = MovedRows<C::kGroups>;
  using Base = BwdRows<C, Moved>;
  using Base::access, Base::ahead, Base::inputs, Base::p, Base::rows, Base::team;

 public:
  XLSTM_DEVICE BwdMover(InputTiles<C>& tiles, DrawRows<C> (&of_draw)[2], RowLengths<C::kTiles>& lengths,
                        const RecurrentBackwardParams<void>& params, const Team& of)
      : Base(tiles, params, of, BatchRows<C::kTiles>(lengths, params.shape, of)), draws(of_draw) {}

  XLSTM_DEVICE void run() {
    __syncthreads();  // weights have passed
    __syncthreads();  // lengths are there
    Base::find_access();
    Base::fetch_first();
    Base::wait_for_first();
    __syncthreads();
    if (access.is_plain()) {
      run_steps([&](int t, int tile, const DrawRows<C>& draw, unsigned slot) {
        store_plain(t, tile, draw);
        fetch_plain(slot);
      });
    } else {
      run_steps([&](int t, int tile, const DrawRows<C>& draw, unsigned slot) { Base::move(t, tile, draw, slot); });
    }
    cp_async_wait<0>();
  }

 private:
  DrawRows<C> (&draws)[2];
  const int seqlen = static_cast<int>(p.shape.seqlen);

  template <class Move>
  XLSTM_DEVICE void run_steps(Move move) {
    unsigned slot = 0;
    int draw = 0;
#pragma unroll 1
    for (Position at; at.t < seqlen; at.next(team.tiles)) {
      draw = 1 - draw;
      if (!XLSTM_MUTANT("resident_bwd: the mover does not wait for inputs")) Base::wait_for_inputs();
      sync_threads(XLSTM_MUTANT("resident_bwd: rows moved before all warps are ready"));
      move(seqlen - 1 - at.t, at.tile, draws[draw], slot);
      slot = (slot + 1) % C::kRing;
    }
  }

  // Of 8 units of a row, in vectors, all exist or none.
  XLSTM_DEVICE int count_of(int tile) const {
    if (Base::moved_units <= 0) return 0;
    return XLSTM_MUTANT("resident_bwd: the mover takes rows past the batch") ? kBatchTile : rows.count(tile);
  }

  XLSTM_DEVICE void store_plain(int t, int tile, const DrawRows<C>& draw) const {
    const Moved at;
    const uint64_t token = rows.plain_index(tile, 0, t), length = static_cast<uint32_t>(seqlen);
    store_rows<C::kPitch>(Base::dx_to + token * Base::dx_stride, &draw[0][at.part * C::kUnits + at.group * kWarpUnits],
                          length * Base::dx_stride, count_of(tile));
  }

  // Rows past their end too: what they hold there has no effect.
  XLSTM_DEVICE void fetch_plain(unsigned slot) {
    const Moved at;
    auto& into = inputs[at.group].tile[slot].x;
    const int t = seqlen - 1 - ahead.t, count = t >= 0 ? count_of(ahead.tile) : 0;
    const uint64_t token = rows.plain_index(ahead.tile, 0, t), length = static_cast<uint32_t>(seqlen);
    fetch_rows<kWarpUnits>(into[at.part][0], Base::saved_from + token * Base::saved_stride, length * Base::saved_stride,
                           count);
    if (at.part < 2) {
      fetch_rows<kWarpUnits>(into[kSaved - 1 + at.part][0], Base::last_from + token * Base::last_stride,
                             length * Base::last_stride, count);
    }
    cp_async_commit();
    ahead.next(team.tiles);
  }
};

}  // namespace
}  // namespace xlstm::cuda
