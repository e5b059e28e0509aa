// y = x W^T + b for few rows of x, as a decode step has them: bound by how fast the weights can be read. Each weight is
// read from memory once, for all rows.
#include "cpu/simd/elements.h"
#include "cpu/simd/gemm.h"
#include "cpu/simd/rows.h"
#include "cpu/simd/table.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {
namespace {

constexpr int kLane = kLanes<float>;
constexpr int kRowsAtOnce = 4;
constexpr int64_t kTaskBytes = int64_t{1} << 15;  // of weights: less is not worth another thread

// The rows of x in float, each filled up with zeros to whole vectors.
template <class E>
void widen_rows(const FewRowsLinearParams& p, float* rows, int64_t stride) {
  for (int64_t row = 0; row < p.rows; ++row) {
    const E* x = row_of<const E>(p.x, 0, 0, row);
    for_vectors<float>(p.in,
                       [&](int64_t i, int64_t lanes) { store(rows + row * stride + i, load_elements(x + i, lanes)); });
  }
}

// kRows rows by kLane / kRows outputs: one vector of sums for each pair. So many rows of weights are read at once,
// since memory gives several streams faster than one. A sum goes the same way whatever kRows is: a row's result does
// not depend on how many there are.
template <int kRows, class E>
struct Tile {
  static constexpr int kOuts = kLane / kRows;

  const FewRowsMap& map;
  const float* x;  // widened
  int64_t rows, in, stride, out;

  // Of rows from `row` on. What is behind the last row, or the last output, is the last one once more.
  void multiply(int64_t row) const {
    const float* values[kRows];
    const E* weights[kOuts];
    XLSTM_UNROLL
    for (int r = 0; r < kRows; ++r) values[r] = x + min_of(row + r, rows - 1) * stride;
    XLSTM_UNROLL
    for (int o = 0; o < kOuts; ++o) weights[o] = row_of<const E>(map.weight, 0, 0, min_of(out + o, map.out - 1));
    Vec<float> sums[kLane] = {};
    for_vectors<float>(in, [&](int64_t i, int64_t lanes) {
      Vec<float> v[kRows];
      XLSTM_UNROLL
      for (int r = 0; r < kRows; ++r) v[r] = load(values[r] + i);
      XLSTM_UNROLL
      for (int o = 0; o < kOuts; ++o) {
        // With so few streams memory does not see by itself what comes next.
        if constexpr (kRows == kRowsAtOnce) prefetch(weights[o] + i + kOuts * map.weight.time);
        const Vec<float> w = load_elements(weights[o] + i, lanes);
        XLSTM_UNROLL
        for (int r = 0; r < kRows; ++r) sums[r * kOuts + o] += w * v[r];
      }
    });
    transpose_square<float>(sums);
    XLSTM_UNROLL
    for (int half = kLane / 2; half > 0; half /= 2) {  // in pairs: fewer roundings follow one another
      XLSTM_UNROLL
      for (int l = 0; l < half; ++l) sums[l] += sums[l + half];
    }
    alignas(kVecBytes) float totals[kLane];
    store(totals, sums[0]);
    for (int r = 0; r < kRows && row + r < rows; ++r) write(row + r, totals + r * kOuts);
  }

  void write(int64_t row, const float* totals) const {
    const int64_t count = min_of(kOuts, map.out - out);
    Vec<float> y = load_n(totals, count);
    if (map.bias.data) y += load_elements(static_cast<const E*>(map.bias.data) + out, count);
    if (map.added.data) y += load_elements(row_of<const E>(map.added, 0, 0, row) + out, count);
    store_elements(row_of<E>(map.y, 0, 0, row) + out, y, count);
  }
};

template <int kRows, class E>
void multiply(const FewRowsLinearParams& p, const float* x, int64_t stride, const Runtime& runtime) {
  constexpr int kOuts = Tile<kRows, E>::kOuts;
  const int64_t bytes = max_of(1, kOuts * p.in * static_cast<int64_t>(sizeof(E)));
  int64_t tiles = 0;
  for (const FewRowsMap& map : p.maps) tiles += ceil_div(map.out, kOuts);
  runtime.parallel(tiles, ceil_div(kTaskBytes, bytes), [&](int64_t index) {
    const FewRowsMap* map = p.maps;
    for (; index >= ceil_div(map->out, kOuts); ++map) index -= ceil_div(map->out, kOuts);
    const Tile<kRows, E> tile{*map, x, p.rows, p.in, stride, index * kOuts};
    for (int64_t row = 0; row < p.rows; row += kRows) tile.multiply(row);
  });
}

}  // namespace

void few_rows_linear(const FewRowsLinearParams& p, const Runtime& runtime) {
  const int64_t stride = ceil_div(p.in, kLane) * kLane;
  float* rows = static_cast<float*>(runtime.scratch(0, static_cast<size_t>(p.rows * stride) * sizeof(float)));
  with_elements_of<float>(p.x.type, [&](auto element) {
    using E = decltype(element);
    widen_rows<E>(p, rows, stride);
    if (p.rows == 1) return multiply<1, E>(p, rows, stride, runtime);
    if (p.rows == 2) return multiply<2, E>(p, rows, stride, runtime);
    multiply<kRowsAtOnce, E>(p, rows, stride, runtime);
  });
}

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
