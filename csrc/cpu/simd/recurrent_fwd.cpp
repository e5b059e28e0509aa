// Recurrent family, forward: the whole time loop. A step writes h beside the h it reads, so that one meeting a step
// is enough for threads that share a head.
#include "cpu/simd/recurrent.h"
#include "cpu/simd/table.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {
namespace {

// Working memory of one recurrence; threads that share it work on columns of their own.
template <class T, class Cell>
struct ForwardBuffers {
  int64_t rows, Dp;
  T *raw, *h, *states;  // (4, rows, Dp); (2, rows, Dp): before and after a step; (kStates, rows, Dp)

  ForwardBuffers(Arena& arena, int64_t rows_, int64_t Dp_) : rows(rows_), Dp(Dp_) {
    raw = arena.take<T>(kGates * rows * Dp);
    h = arena.take<T>(2 * rows * Dp);
    states = arena.take<T>(Cell::kStates * rows * Dp);
  }
  T* raw_at(int64_t gate, int64_t row) const { return raw + (gate * rows + row) * Dp; }
  T* h_at(int64_t t, int64_t row) const { return h + (t % 2 * rows + row) * Dp; }
  T* state_at(int64_t s, int64_t row) const { return states + (s * rows + row) * Dp; }
};

template <class T, class W, class Cell>
class ForwardTile {
 public:
  using Buffers = ForwardBuffers<T, Cell>;

  ForwardTile(const RecurrentForwardParams<T>& params, const Tile& tile_, const PackedR<T, W>& R_,
              const Buffers& buffers_, Meeting& meeting_)
      : p(params), tile(tile_), R(R_), buffers(buffers_), meeting(meeting_) {}

  static void pack(const WeightView<const T>& R, int64_t gate, int64_t head, int64_t D, W* packed) {
    pack_forward(R, gate, head, D, packed);
  }

  void run() {
    for (int64_t row = 0; row < tile.rows; ++row) load_initial(row);
    for (int64_t t = 0; t < p.shape.seqlen; ++t) {
      meeting.wait(tile.carried);
      for (int g = 0; g < kGates; ++g) {
        gemm<T, W>(tile.rows, tile.units, 0, D, {buffers.h_at(t, 0), buffers.Dp, 1}, R.at(g, tile.first_unit),
                   buffers.raw_at(g, 0) + tile.first_unit, buffers.Dp, 0);
      }
      for (int64_t row = 0; row < tile.rows; ++row) step(row, t);
    }
    for (int64_t row = 0; row < tile.rows; ++row) store_final(row);
  }

 private:
  const RecurrentForwardParams<T>& p;
  const Tile tile;
  const PackedR<T, W> R;
  const Buffers buffers;
  Meeting& meeting;
  const int64_t D = p.shape.head_dim, hidden = p.shape.hidden();

  int64_t length(int64_t row) const { return length_of(p.lengths, tile.first_row + row, p.shape.seqlen); }
  int64_t place(int64_t row, int64_t t) const { return p.shape.token(tile.head, t, length(row)); }

  // h and the state before token t.
  void set_state(int64_t row, int64_t t, const RecurrentState<const T>& from) {
    const int64_t offset = tile.state_offset(p.shape, row);
    tile.for_units<T>([&](int64_t j, int64_t lanes) {
      Vec<T> s[Cell::kStates];
      Cell::load_state(load_public(from, offset + j, lanes), s);
      for (int x = 0; x < Cell::kStates; ++x) store(buffers.state_at(x, row) + j, s[x]);
      const Vec<T> h = from.h ? load_n(from.h + offset + j, lanes) : splat<T>(0);
      store(buffers.h_at(t, row) + j, rounded<T>(h, p.type));
    });
  }

  void apply_reset(int64_t row, int64_t t) {
    if (t < length(row) && p.reset.at(tile.first_row + row, place(row, t))) set_state(row, t, {});
  }

  void load_initial(int64_t row) {
    set_state(row, 0, p.initial_state);
    apply_reset(row, 0);
  }

  void step(int64_t row, int64_t t) {
    const int64_t at = place(row, t), token = (tile.first_row + row) * p.shape.seqlen + at;
    const int64_t next = p.shape.is_reversed(tile.head) ? -p.x.time : p.x.time;
    T *out = p.h + token * hidden + tile.head * D, *h_next = buffers.h_at(t + 1, row);
    T* saved_out = p.saved ? p.saved + token * kSaved * hidden + tile.head * D : nullptr;
    if (t >= length(row)) return pass_padding(row, t, out, saved_out);
    tile.for_units<T>([&](int64_t j, int64_t lanes) {
      Vec<T> gates[kGates], s[Cell::kStates], saved[kSaved];
      XLSTM_UNROLL
      for (int g = 0; g < kGates; ++g) {
        const T* x = p.x.at(tile.first_row + row, at, g, tile.head) + j;
        gates[g] = load(buffers.raw_at(g, row) + j) + load_n(x, lanes);
        prefetch(x + next);  // of the next token: the processor does not guess that stride
        if (p.b) gates[g] += load_n(p.b + g * hidden + tile.head * D + j, lanes);
      }
      XLSTM_UNROLL
      for (int x = 0; x < Cell::kStates; ++x) s[x] = load(buffers.state_at(x, row) + j);
      const Vec<T> h = rounded<T>(Cell::forward(gates, s, saved), p.type);
      store(h_next + j, h);
      store_n(out + j, h, lanes);
      XLSTM_UNROLL
      for (int x = 0; x < Cell::kStates; ++x) store(buffers.state_at(x, row) + j, s[x]);
      if (!saved_out) return;
      XLSTM_UNROLL
      for (int x = 0; x < kSaved; ++x) store_n(saved_out + x * hidden + j, saved[x], lanes);
    });
    apply_reset(row, t + 1);
  }

  // After the end of a row: zeros out, the state stays.
  void pass_padding(int64_t row, int64_t t, T* out, T* saved_out) {
    const int64_t first = tile.first_unit;
    fill_row<T>(out + first, 0, tile.units);
    for (int x = 0; saved_out && x < kSaved; ++x) fill_row<T>(saved_out + x * hidden + first, 0, tile.units);
    scale_row<T>(buffers.h_at(t + 1, row) + first, 1, buffers.h_at(t, row) + first, tile.units);
  }

  void store_final(int64_t row) {
    const int64_t offset = tile.state_offset(p.shape, row), first = tile.first_unit;
    scale_row<T>(p.final_state.h + offset + first, 1, buffers.h_at(p.shape.seqlen, row) + first, tile.units);
    tile.for_units<T>([&](int64_t j, int64_t lanes) {
      // a row without tokens hands its state through, to the bit
      if (length(row) == 0)
        return store_public(p.final_state, load_public(p.initial_state, offset + j, lanes), offset + j, lanes);
      Vec<T> s[Cell::kStates];
      for (int x = 0; x < Cell::kStates; ++x) s[x] = load(buffers.state_at(x, row) + j);
      store_public(p.final_state, Cell::store_state(s), offset + j, lanes);
    });
  }
};

template <class T, class W>
void forward(const RecurrentForwardParams<T>& p, const Runtime& runtime) {
  with_cell<T>(p.cell, [&](auto cell) { run_recurrences<T, W, ForwardTile<T, W, decltype(cell)>>(p, runtime); });
}

}  // namespace

template <>
void recurrent_fwd(const RecurrentForwardParams<float>& p, const Runtime& runtime) {
  return half_weights(p.shape, p.type) ? forward<float, Bf16>(p, runtime) : forward<float, float>(p, runtime);
}
template <>
void recurrent_fwd(const RecurrentForwardParams<double>& p, const Runtime& runtime) {
  return forward<double, double>(p, runtime);
}

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
