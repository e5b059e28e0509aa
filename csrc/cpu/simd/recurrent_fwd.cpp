// Recurrent family, forward: the whole time loop of one head and a tile of batch rows in one work item.
#include "cpu/simd/recurrent.h"
#include "cpu/simd/table.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {
namespace {

template <class T, class Cell>
class ForwardTile {
 public:
  ForwardTile(const RecurrentFwdParams<T>& params, const BatchTile& batch_tile, const T* packed_R,
              const Runtime& runtime)
      : p(params), tile(batch_tile), D(p.shape.head_dim), Dp(padded_row(D)), R(packed_R) {
    Arena count;
    place(count);
    Arena arena(runtime.scratch(1, count.used()));
    place(arena);
  }

  void run() {
    for (int64_t row = 0; row < tile.rows; ++row) load_initial(row);
    for (int64_t t = 0; t < p.shape.seqlen; ++t) {
      if (p.reset.data) apply_resets(t);
      for (int g = 0; g < kGates; ++g) {
        gemm<T>(tile.rows, D, 0, D, {h, Dp, 1}, {R + g * packed_size<T>(D, D), D}, raw + g * tile.rows * Dp, Dp, 0);
      }
      for (int64_t row = 0; row < tile.rows; ++row) step(row, t);
    }
    for (int64_t row = 0; row < tile.rows; ++row) store_final(row);
  }

 private:
  const RecurrentFwdParams<T>& p;
  const BatchTile tile;
  const int64_t D, Dp;
  const T* R;
  T *raw, *h, *states;  // (4, rows, Dp), (rows, Dp), (kStates, rows, Dp)

  void place(Arena& arena) {
    raw = arena.take<T>(kGates * tile.rows * Dp);
    h = arena.take<T>(tile.rows * Dp);
    states = arena.take<T>(Cell::kStates * tile.rows * Dp);
  }

  int64_t public_offset(int64_t row) const { return ((tile.first + row) * p.shape.num_heads + tile.head) * D; }
  T* state_at(int s, int64_t row) const { return states + (s * tile.rows + row) * Dp; }

  void set_state(int64_t row, const RecurrentState<const T>& from) {
    const int64_t offset = public_offset(row);
    for_vectors<T>(D, [&](int64_t j, int64_t lanes) {
      Vec<T> s[Cell::kStates];
      Cell::load_state(load_public(from, offset + j, lanes), s);
      for (int x = 0; x < Cell::kStates; ++x) store(state_at(x, row) + j, s[x]);
      store(h + row * Dp + j, from.h ? load_n(from.h + offset + j, lanes) : splat<T>(0));
    });
  }

  void load_initial(int64_t row) {
    set_state(row, p.initial);
    round_row(h + row * Dp, D, p.rounding);
  }

  void apply_resets(int64_t t) {
    for (int64_t row = 0; row < tile.rows; ++row) {
      const int64_t b = tile.first + row;
      if (p.reset.at(b, t) && t < length_of(p.lengths, b, p.shape.seqlen)) set_state(row, {});
    }
  }

  void step(int64_t row, int64_t t) {
    const int64_t b = tile.first + row, token = b * p.shape.seqlen + t, hidden = p.shape.hidden();
    T* out = p.h + token * hidden + tile.head * D;
    T* saved_out = p.saved ? p.saved + token * kSaved * hidden + tile.head * D : nullptr;
    if (t >= length_of(p.lengths, b, p.shape.seqlen)) {
      fill_row<T>(out, 0, D);
      for (int x = 0; saved_out && x < kSaved; ++x) fill_row<T>(saved_out + x * hidden, 0, D);
      return;
    }
    T* h_row = h + row * Dp;
    for_vectors<T>(D, [&](int64_t j, int64_t lanes) {
      Vec<T> gates[kGates], s[Cell::kStates], saved[kSaved];
      XLSTM_UNROLL
      for (int g = 0; g < kGates; ++g) {
        gates[g] = load(raw + (g * tile.rows + row) * Dp + j) + load_n(p.x.at(b, t, g, tile.head) + j, lanes);
        if (p.b) gates[g] += load_n(p.b + g * hidden + tile.head * D + j, lanes);
      }
      XLSTM_UNROLL
      for (int x = 0; x < Cell::kStates; ++x) s[x] = load(state_at(x, row) + j);
      store(h_row + j, Cell::forward(gates, s, saved));
      XLSTM_UNROLL
      for (int x = 0; x < Cell::kStates; ++x) store(state_at(x, row) + j, s[x]);
      if (!saved_out) return;
      XLSTM_UNROLL
      for (int x = 0; x < kSaved; ++x) store_n(saved_out + x * hidden + j, saved[x], lanes);
    });
    round_row(h_row, D, p.rounding);
    scale_row<T>(out, 1, h_row, D);
  }

  void store_final(int64_t row) {
    const int64_t offset = public_offset(row);
    scale_row<T>(p.final.h + offset, 1, h + row * Dp, D);
    if (length_of(p.lengths, tile.first + row, p.shape.seqlen) == 0) return copy_initial(offset);
    for_vectors<T>(D, [&](int64_t j, int64_t lanes) {
      Vec<T> s[Cell::kStates];
      for (int x = 0; x < Cell::kStates; ++x) s[x] = load(state_at(x, row) + j);
      store_public(p.final, Cell::store_state(s), offset + j, lanes);
    });
  }

  // A row without tokens hands its state through, to the bit.
  void copy_initial(int64_t offset) {
    for_vectors<T>(D, [&](int64_t j, int64_t lanes) {
      store_public(p.final, load_public(p.initial, offset + j, lanes), offset + j, lanes);
    });
  }
};

}  // namespace

template <class T>
void recurrent_fwd(const RecurrentFwdParams<T>& p, const Runtime& runtime) {
  const int64_t D = p.shape.head_dim, size = packed_size<T>(D, D), matrices = p.shape.num_heads * kGates;
  // R of one head: four panels sets, gate by gate.
  T* R = static_cast<T*>(runtime.scratch(0, static_cast<size_t>(matrices * size) * sizeof(T)));
  runtime.parallel(matrices, ceil_div(int64_t{1} << 15, D * D),
                   [&](int64_t item) { pack_forward(p.R, item % kGates, item / kGates, D, R + item * size); });
  const BatchTiles tiles(p.shape, runtime.num_threads());
  with_cell<T>(p.cell, [&](auto cell) {
    runtime.parallel(tiles.count(), 1, [&](int64_t item) {
      const BatchTile tile = tiles.at(item);
      if (tile.rows > 0) ForwardTile<T, decltype(cell)>(p, tile, R + tile.head * kGates * size, runtime).run();
    });
  });
}

template void recurrent_fwd<float>(const RecurrentFwdParams<float>&, const Runtime&);
template void recurrent_fwd<double>(const RecurrentFwdParams<double>&, const Runtime&);

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
