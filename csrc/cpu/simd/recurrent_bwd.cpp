// Recurrent family, backward: the reverse time loop leaves the gradient of the raw gates, which is also dx; the
// gradients of R and b are products over all tokens afterwards.
#include "cpu/simd/recurrent.h"
#include "cpu/simd/table.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {
namespace {

// Working memory of one recurrence; threads that share it work on columns of their own. draw is kept for two steps, so
// that one meeting a step is enough.
template <class T, class Cell>
struct BackwardBuffers {
  int64_t rows, Dp;
  T *draw, *dh, *grads;  // (2, gates, rows, Dp); (rows, Dp): gradient of h before the step; (kGrads, rows, Dp): of the
                         // carried state

  BackwardBuffers(Arena& arena, int64_t rows_, int64_t Dp_) : rows(rows_), Dp(Dp_) {
    draw = arena.take<T>(2 * kGates * rows * Dp);
    dh = arena.take<T>(rows * Dp);
    grads = arena.take<T>(Cell::kGrads * rows * Dp);
  }
  T* draw_at(int64_t t, int64_t gate, int64_t row) const { return draw + ((t % 2 * kGates + gate) * rows + row) * Dp; }
  T* dh_at(int64_t row) const { return dh + row * Dp; }
  T* grad_at(int64_t x, int64_t row) const { return grads + (x * rows + row) * Dp; }
};

template <class T, class W, class Cell>
class BackwardTile {
 public:
  using Buffers = BackwardBuffers<T, Cell>;

  BackwardTile(const RecurrentBackwardParams<T>& params, const Tile& tile_, const PackedR<T, W>& R_,
               const Buffers& buffers_, Meeting& meeting_)
      : p(params), tile(tile_), R(R_), buffers(buffers_), meeting(meeting_) {}

  static void pack(const WeightView<const T>& R, int64_t gate, int64_t head, int64_t D, W* packed) {
    pack_backward(R, gate, head, D, packed);
  }

  void run() {
    for (int64_t row = 0; row < tile.rows; ++row) load_final(row);
    for (int64_t t = S - 1; t >= 0; --t) {
      for (int64_t row = 0; row < tile.rows; ++row) step(row, t);
      meeting.wait(tile.carried);
      for (int g = 0; g < kGates; ++g) {
        gemm<T, W>(tile.rows, tile.units, 0, D, {buffers.draw_at(t, g, 0), buffers.Dp, 1}, R.at(g, tile.first_unit),
                   buffers.dh_at(0) + tile.first_unit, buffers.Dp, g > 0 ? 1 : 0);
      }
      for (int64_t row = 0; p.reset.data && row < tile.rows; ++row) apply_reset(row, t);
    }
    for (int64_t row = 0; row < tile.rows; ++row) store_initial(row);
  }

 private:
  const RecurrentBackwardParams<T>& p;
  const Tile tile;
  const PackedR<T, W> R;
  const Buffers buffers;
  Meeting& meeting;
  const int64_t S = p.shape.seqlen, D = p.shape.head_dim, hidden = p.shape.hidden(), token_size = kGates * hidden;

  int64_t length(int64_t row) const { return length_of(p.lengths, tile.first_row + row, S); }
  int64_t place(int64_t row, int64_t t) const { return p.shape.token(tile.head, t, length(row)); }

  void load_final(int64_t row) {
    const int64_t offset = tile.state_offset(p.shape, row);
    tile.for_units<T>([&](int64_t j, int64_t lanes) {
      Vec<T> d[Cell::kGrads];
      Cell::load_grad(load_public(p.final_state, offset + j, lanes), load_public(p.final_state_grad, offset + j, lanes),
                      d);
      for (int x = 0; x < Cell::kGrads; ++x) store(buffers.grad_at(x, row) + j, d[x]);
      store(buffers.dh_at(row) + j, splat<T>(0));
    });
  }

  void step(int64_t row, int64_t t) {
    const int64_t token = (tile.first_row + row) * S + place(row, t);
    const int64_t before = p.shape.is_reversed(tile.head) ? hidden : -hidden;  // from a token to the one before
    T* dx = p.dx + token * token_size + tile.head * D;
    if (t >= length(row)) {
      for (int g = 0; g < kGates; ++g) {
        fill_row<T>(dx + g * hidden + tile.first_unit, 0, tile.units);
        fill_row<T>(buffers.draw_at(t, g, row) + tile.first_unit, 0, tile.units);
      }
      return;
    }
    const T* dh_out = p.dh + token * hidden + tile.head * D;
    const T* dh_final =
        t == length(row) - 1 && p.final_state_grad.h ? p.final_state_grad.h + tile.state_offset(p.shape, row) : nullptr;
    const T* saved_in = p.saved + token * kSaved * hidden + tile.head * D;
    tile.for_units<T>([&](int64_t j, int64_t lanes) {
      Vec<T> saved[kSaved], d[Cell::kGrads], draw[kGates];
      XLSTM_UNROLL
      for (int x = 0; x < kSaved; ++x) {
        saved[x] = load_n(saved_in + x * hidden + j, lanes);
        prefetch(saved_in + x * hidden + kSaved * before + j);  // of the token before
      }
      XLSTM_UNROLL
      for (int x = 0; x < Cell::kGrads; ++x) d[x] = load(buffers.grad_at(x, row) + j);
      Vec<T> dh_total = load(buffers.dh_at(row) + j) + load_n(dh_out + j, lanes);
      prefetch(dh_out + before + j);
      if (dh_final) dh_total += load_n(dh_final + j, lanes);
      Cell::backward(saved, dh_total, d, draw);
      XLSTM_UNROLL
      for (int x = 0; x < Cell::kGrads; ++x) store(buffers.grad_at(x, row) + j, d[x]);
      XLSTM_UNROLL
      for (int g = 0; g < kGates; ++g) {
        store_n(dx + g * hidden + j, draw[g], lanes);
        store(buffers.draw_at(t, g, row) + j, draw[g]);
      }
    });
  }

  void apply_reset(int64_t row, int64_t t) {
    if (t >= length(row) || !p.reset.at(tile.first_row + row, place(row, t))) return;
    fill_row<T>(buffers.dh_at(row) + tile.first_unit, 0, tile.units);
    for (int x = 0; x < Cell::kGrads; ++x) fill_row<T>(buffers.grad_at(x, row) + tile.first_unit, 0, tile.units);
  }

  void store_initial(int64_t row) {
    const int64_t offset = tile.state_offset(p.shape, row);
    tile.for_units<T>([&](int64_t j, int64_t lanes) {
      if (length(row) == 0) return pass_through(offset + j, lanes);
      Vec<T> d[Cell::kGrads];
      for (int x = 0; x < Cell::kGrads; ++x) d[x] = load(buffers.grad_at(x, row) + j);
      store_n(p.initial_state_grad.h + offset + j, load(buffers.dh_at(row) + j), lanes);
      store_public(p.initial_state_grad, Cell::store_grad(load_public(p.initial_state, offset + j, lanes), d),
                   offset + j, lanes);
    });
  }

  // A row without tokens: the final state is the initial state.
  void pass_through(int64_t at, int64_t lanes) {
    store_n(p.initial_state_grad.h + at, p.final_state_grad.h ? load_n(p.final_state_grad.h + at, lanes) : splat<T>(0),
            lanes);
    store_public(p.initial_state_grad, load_public(p.final_state_grad, at, lanes), at, lanes);
  }
};

// dR[g] = sum over tokens of d raw[g] h_before^T and db[g] = sum of d raw[g], for one gate and head.
template <class T>
class WeightGrad {
 public:
  WeightGrad(const RecurrentBackwardParams<T>& params, int64_t gate_, int64_t head_, const Runtime& runtime)
      : p(params), gate(gate_), head(head_) {
    Arena count;
    place(count);
    Arena arena(runtime.scratch(1, count.used()));
    place(arena);
  }

  void run() {
    const int64_t tokens = p.shape.batch * S;
    T* dR = p.dR + (gate * p.shape.num_heads + head) * D * D;
    T* db = p.db + gate * hidden + head * D;
    fill_row<T>(db, 0, D);
    if (tokens == 0) fill_row<T>(dR, 0, D * D);
    for (int64_t first = 0; first < tokens; first += kBlock) {
      const int64_t block = min_of(kBlock, tokens - first);
      fill_row<T>(sum, 0, row);
      for (int64_t k = 0; k < block; ++k) load_token(first + k, k);
      axpby_row<T>(db, 1, 1, sum, D);
      pack_rows(h_before, row, block, D, packed);
      gemm<T>(D, D, 0, block, {draw, 1, row}, {packed, block}, dR, D, first > 0 ? 1 : 0);
    }
  }

 private:
  static constexpr int64_t kBlock = 128;  // tokens a product covers
  const RecurrentBackwardParams<T>& p;
  const int64_t gate, head, S = p.shape.seqlen, D = p.shape.head_dim, hidden = p.shape.hidden();
  // Copies of the block's rows: in dx they lie a power of two apart, where they would push each other out of the cache.
  const int64_t row = padded_row(D) + 64 / sizeof(T);
  T *draw, *h_before, *packed, *sum;

  void place(Arena& arena) {
    draw = arena.take<T>(kBlock * row);
    h_before = arena.take<T>(kBlock * row);
    packed = arena.take<T>(packed_size<T>(kBlock, D));
    sum = arena.take<T>(row);
  }

  void load_token(int64_t token, int64_t k) {
    const int64_t b = token / S, t = token % S, step = p.shape.is_reversed(head) ? 1 : -1;
    const bool first = t == (step > 0 ? length_of(p.lengths, b, S) - 1 : 0);
    const T* initial_h = p.initial_state.h ? p.initial_state.h + (b * p.shape.num_heads + head) * D : nullptr;
    const bool none = p.reset.at(b, t) || t >= length_of(p.lengths, b, S);
    const T* before = none ? nullptr : first ? initial_h : p.h + (token + step) * hidden + head * D;
    const T* dx = p.dx + (token * kGates + gate) * hidden + head * D;
    for_vectors<T>(D, [&](int64_t j, int64_t lanes) {
      const Vec<T> d = load_n(dx + j, lanes);
      store(draw + k * row + j, d);
      store(sum + j, load(sum + j) + d);
      store(h_before + k * row + j, before ? load_n(before + j, lanes) : splat<T>(0));
    });
  }
};

template <class T, class W>
void backward(const RecurrentBackwardParams<T>& p, const Runtime& runtime) {
  with_cell<T>(p.cell, [&](auto cell) { run_recurrences<T, W, BackwardTile<T, W, decltype(cell)>>(p, runtime); });
  runtime.parallel(p.shape.num_heads * kGates, 1,
                   [&](int64_t item) { WeightGrad<T>(p, item % kGates, item / kGates, runtime).run(); });
}

}  // namespace

template <>
void recurrent_bwd(const RecurrentBackwardParams<float>& p, const Runtime& runtime) {
  return half_weights(p.shape, p.type) ? backward<float, Bf16>(p, runtime) : backward<float, float>(p, runtime);
}
template <>
void recurrent_bwd(const RecurrentBackwardParams<double>& p, const Runtime& runtime) {
  return backward<double, double>(p, runtime);
}

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
