// Recurrent family, one token: one work item is a vector of hidden units of one head, for all batch rows.
#include "cpu/simd/recurrent.h"
#include "cpu/simd/table.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {
namespace {

// Units [j, j + lanes) of R h where each row (one unit's weights) is contiguous: one sum per lane, by adding up along
// the rows and transposing once at the end.
template <class T>
Vec<T> rows_times(const T* R, int64_t stride, int64_t D, const T* h, int64_t lanes) {
  constexpr int W = kLanes<T>;
  Vec<T> sums[W];
  XLSTM_UNROLL
  for (int r = 0; r < W; ++r) sums[r] = splat<T>(0);
  for_vectors<T>(D, [&](int64_t k, int64_t width) {
    const Vec<T> x = load_n(h + k, width);
    XLSTM_UNROLL
    for (int r = 0; r < W; ++r) {
      if (r < lanes) sums[r] += load_n(R + r * stride + k, width) * x;
    }
  });
  transpose_square<T>(sums);
  Vec<T> total = splat<T>(0);
  XLSTM_UNROLL
  for (int r = 0; r < W; ++r) total += sums[r];
  return total;
}

// The same where the units of one input are contiguous.
template <class T>
Vec<T> columns_times(const T* R, int64_t stride, int64_t D, const T* h, int64_t lanes) {
  Vec<T> even = splat<T>(0), odd = splat<T>(0);  // two chains of additions
  int64_t k = 0;
  for (; k + 1 < D; k += 2) {
    even += load_n(R + k * stride, lanes) * h[k];
    odd += load_n(R + (k + 1) * stride, lanes) * h[k + 1];
  }
  if (k < D) even += load_n(R + k * stride, lanes) * h[k];
  return even + odd;
}

template <class T, class Cell>
void step_units(const RecurrentStepParams<T>& p, int64_t head, int64_t j) {
  const int64_t D = p.shape.head_dim, H = p.shape.num_heads, hidden = p.shape.hidden();
  const int64_t lanes = min_of(kLanes<T>, D - j);
  for (int64_t b = 0; b < p.shape.batch; ++b) {
    const int64_t offset = (b * H + head) * D;
    Vec<T> gates[kGates], state[Cell::kStates], saved[kSaved];
    for (int g = 0; g < kGates; ++g) {
      const T *R = p.R.at(g, head) + j * p.R.out, *h = p.state.h + offset;
      gates[g] = p.R.in == 1 ? rows_times(R, p.R.out, D, h, lanes) : columns_times(R, p.R.in, D, h, lanes);
      gates[g] += load_n(p.x.at(b, 0, g, head) + j, lanes);
      if (p.b) gates[g] += load_n(p.b + g * hidden + head * D + j, lanes);
    }
    Cell::load_state(load_public(p.state, offset + j, lanes), state);
    store_n(p.next.h + offset + j, rounded<T>(Cell::forward(gates, state, saved), p.type), lanes);
    store_public(p.next, Cell::store_state(state), offset + j, lanes);
  }
}

}  // namespace

template <class T>
void recurrent_step(const RecurrentStepParams<T>& p, const Runtime& runtime) {
  const int64_t D = p.shape.head_dim, blocks = ceil_div(D, kLanes<T>);
  const int64_t work = max_of(1, p.shape.batch * kGates * D * kLanes<T>);
  with_cell<T>(p.cell, [&](auto cell) {
    runtime.parallel(p.shape.num_heads * blocks, ceil_div(int64_t{1} << 15, work),
                     [&](int64_t item) { step_units<T, decltype(cell)>(p, item / blocks, item % blocks * kLanes<T>); });
  });
}

template void recurrent_step<float>(const RecurrentStepParams<float>&, const Runtime&);
template void recurrent_step<double>(const RecurrentStepParams<double>&, const Runtime&);

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
