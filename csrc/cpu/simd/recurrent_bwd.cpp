// Recurrent family, backward: the reverse time loop leaves the gradient of the raw gates, which is also dx; the
// gradients of R and b are products over all tokens afterwards.
#include "cpu/simd/recurrent.h"
#include "cpu/simd/table.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {
namespace {

template <class T, class Cell>
class BackwardTile {
 public:
  BackwardTile(const RecurrentBwdParams<T>& params, const BatchTile& batch_tile, const T* packed_R,
               const Runtime& runtime)
      : p(params), tile(batch_tile), S(p.shape.seqlen), D(p.shape.head_dim), Dp(padded_row(D)), R(packed_R) {
    Arena count;
    place(count);
    Arena arena(runtime.scratch(1, count.used()));
    place(arena);
  }

  void run() {
    for (int64_t row = 0; row < tile.rows; ++row) load_final(row);
    const int64_t hidden = p.shape.hidden(), token = kGates * hidden;
    for (int64_t t = S - 1; t >= 0; --t) {
      for (int64_t row = 0; row < tile.rows; ++row) step(row, t);
      for (int g = 0; g < kGates; ++g) {
        const T* dx = p.dx + (tile.first * S + t) * token + g * hidden + tile.head * D;
        gemm<T>(tile.rows, D, 0, D, {dx, S * token, 1}, {R + g * packed_size<T>(D, D), D}, dh, Dp, g > 0 ? 1 : 0);
      }
      if (p.reset.data) apply_resets(t);
    }
    for (int64_t row = 0; row < tile.rows; ++row) store_initial(row);
  }

 private:
  const RecurrentBwdParams<T>& p;
  const BatchTile tile;
  const int64_t S, D, Dp;
  const T* R;
  T *dh, *grads;  // (rows, Dp): gradient of h before the step; (kGrads, rows, Dp): of the carried state

  void place(Arena& arena) {
    dh = arena.take<T>(tile.rows * Dp);
    grads = arena.take<T>(Cell::kGrads * tile.rows * Dp);
  }

  int64_t public_offset(int64_t row) const { return ((tile.first + row) * p.shape.num_heads + tile.head) * D; }
  T* grad_at(int x, int64_t row) const { return grads + (x * tile.rows + row) * Dp; }

  void load_final(int64_t row) {
    const int64_t offset = public_offset(row);
    for_vectors<T>(D, [&](int64_t j, int64_t lanes) {
      Vec<T> d[Cell::kGrads];
      Cell::load_grad(load_public(p.final, offset + j, lanes), load_public(p.final_grad, offset + j, lanes), d);
      for (int x = 0; x < Cell::kGrads; ++x) store(grad_at(x, row) + j, d[x]);
    });
    fill_row<T>(dh + row * Dp, 0, Dp);
  }

  void step(int64_t row, int64_t t) {
    const int64_t b = tile.first + row, token = b * S + t, hidden = p.shape.hidden();
    const int64_t length = length_of(p.lengths, b, S);
    T* dx = p.dx + token * kGates * hidden + tile.head * D;
    if (t >= length) {
      for (int g = 0; g < kGates; ++g) fill_row<T>(dx + g * hidden, 0, D);
      return;
    }
    const T* dh_out = p.dh + token * hidden + tile.head * D;
    const T* dh_final = t == length - 1 && p.final_grad.h ? p.final_grad.h + public_offset(row) : nullptr;
    const T* saved_in = p.saved + token * kSaved * hidden + tile.head * D;
    for_vectors<T>(D, [&](int64_t j, int64_t lanes) {
      Vec<T> saved[kSaved], d[Cell::kGrads], draw[kGates];
      XLSTM_UNROLL
      for (int x = 0; x < kSaved; ++x) saved[x] = load_n(saved_in + x * hidden + j, lanes);
      XLSTM_UNROLL
      for (int x = 0; x < Cell::kGrads; ++x) d[x] = load(grad_at(x, row) + j);
      Vec<T> dh_total = load(dh + row * Dp + j) + load_n(dh_out + j, lanes);
      if (dh_final) dh_total += load_n(dh_final + j, lanes);
      Cell::backward(saved, dh_total, d, draw);
      XLSTM_UNROLL
      for (int x = 0; x < Cell::kGrads; ++x) store(grad_at(x, row) + j, d[x]);
      XLSTM_UNROLL
      for (int g = 0; g < kGates; ++g) store_n(dx + g * hidden + j, draw[g], lanes);
    });
  }

  void apply_resets(int64_t t) {
    for (int64_t row = 0; row < tile.rows; ++row) {
      const int64_t b = tile.first + row;
      if (!p.reset.at(b, t) || t >= length_of(p.lengths, b, S)) continue;
      fill_row<T>(dh + row * Dp, 0, Dp);
      for (int x = 0; x < Cell::kGrads; ++x) fill_row<T>(grad_at(x, row), 0, Dp);
    }
  }

  void store_initial(int64_t row) {
    const int64_t offset = public_offset(row);
    if (length_of(p.lengths, tile.first + row, S) == 0) return pass_through(offset);
    scale_row<T>(p.initial_grad.h + offset, 1, dh + row * Dp, D);
    for_vectors<T>(D, [&](int64_t j, int64_t lanes) {
      Vec<T> d[Cell::kGrads];
      for (int x = 0; x < Cell::kGrads; ++x) d[x] = load(grad_at(x, row) + j);
      store_public(p.initial_grad, Cell::store_grad(load_public(p.initial, offset + j, lanes), d), offset + j, lanes);
    });
  }

  // A row without tokens: the final state is the initial state.
  void pass_through(int64_t offset) {
    for_vectors<T>(D, [&](int64_t j, int64_t lanes) {
      store_n(p.initial_grad.h + offset + j, p.final_grad.h ? load_n(p.final_grad.h + offset + j, lanes) : splat<T>(0),
              lanes);
      store_public(p.initial_grad, load_public(p.final_grad, offset + j, lanes), offset + j, lanes);
    });
  }
};

// dR[g] = sum over tokens of d raw[g] h_before^T and db[g] = sum of d raw[g], for one gate and head.
template <class T>
void weight_grad(const RecurrentBwdParams<T>& p, int64_t gate, int64_t head, const Runtime& runtime) {
  constexpr int64_t kBlock = 256;  // tokens a product covers
  const int64_t S = p.shape.seqlen, D = p.shape.head_dim, Dp = padded_row(D), hidden = p.shape.hidden();
  const int64_t tokens = p.shape.batch * S;
  T* dR = p.dR + (gate * p.shape.num_heads + head) * D * D;
  T* db = p.db + gate * hidden + head * D;
  Arena count;
  count.take<T>(kBlock * Dp), count.take<T>(packed_size<T>(kBlock, D)), count.take<T>(Dp);
  Arena arena(runtime.scratch(1, count.used()));
  T *h_before = arena.take<T>(kBlock * Dp), *packed = arena.take<T>(packed_size<T>(kBlock, D));
  T* sum = arena.take<T>(Dp);
  fill_row<T>(db, 0, D);
  if (tokens == 0) fill_row<T>(dR, 0, D * D);
  for (int64_t first = 0; first < tokens; first += kBlock) {
    const int64_t block = min_of(kBlock, tokens - first);
    const T* dx = p.dx + first * kGates * hidden + gate * hidden + head * D;
    fill_row<T>(sum, 0, Dp);
    for (int64_t k = 0; k < block; ++k) {
      const int64_t b = (first + k) / S, t = (first + k) % S;
      const T* before = t > 0         ? p.h + (first + k - 1) * hidden + head * D
                        : p.initial.h ? p.initial.h + (b * p.shape.num_heads + head) * D
                                      : nullptr;
      if (!before || p.reset.at(b, t))
        fill_row<T>(h_before + k * Dp, 0, D);
      else
        scale_row<T>(h_before + k * Dp, 1, before, D);
      axpby_row<T>(sum, 1, 1, dx + k * kGates * hidden, D);
    }
    axpby_row<T>(db, 1, 1, sum, D);
    pack_rows(h_before, Dp, block, D, packed);
    gemm<T>(D, D, 0, block, {dx, 1, kGates * hidden}, {packed, block}, dR, D, first > 0 ? 1 : 0);
  }
}

}  // namespace

template <class T>
void recurrent_bwd(const RecurrentBwdParams<T>& p, const Runtime& runtime) {
  const int64_t D = p.shape.head_dim, size = packed_size<T>(D, D), matrices = p.shape.num_heads * kGates;
  T* R = static_cast<T*>(runtime.scratch(0, static_cast<size_t>(matrices * size) * sizeof(T)));
  runtime.parallel(matrices, ceil_div(int64_t{1} << 15, D * D),
                   [&](int64_t item) { pack_backward(p.R, item % kGates, item / kGates, D, R + item * size); });
  const BatchTiles tiles(p.shape, runtime.num_threads());
  with_cell<T>(p.cell, [&](auto cell) {
    runtime.parallel(tiles.count(), 1, [&](int64_t item) {
      const BatchTile tile = tiles.at(item);
      if (tile.rows > 0) BackwardTile<T, decltype(cell)>(p, tile, R + tile.head * kGates * size, runtime).run();
    });
  });
  runtime.parallel(matrices, 1, [&](int64_t item) { weight_grad(p, item % kGates, item / kGates, runtime); });
}

template void recurrent_bwd<float>(const RecurrentBwdParams<float>&, const Runtime&);
template void recurrent_bwd<double>(const RecurrentBwdParams<double>&, const Runtime&);

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
