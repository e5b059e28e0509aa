// The matrix product itself: a tile of C in registers, one panel of B and kTileRows rows of A at a time.
#include "cpu/simd/gemm.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {
namespace {

// Panels side by side in one tile of few rows: one panel alone would leave too few sums in flight to hide the latency
// of an addition. The sums, a vector of each panel and one element of A have to fit the registers.
constexpr int panels_for(int rows) {
  int panels = rows == 1 ? 4 : 1;
  while (panels < 4 && 2 * panels * kTileVecs * (rows + 1) < kVecRegisters) panels *= 2;
  return panels;
}

// Rows [0, ROWS) and kVecs vectors of columns, the first `width` columns of them.
template <class T, class W, int ROWS, int kVecs>
XLSTM_INLINE void gemm_tile(int64_t K, const T* A, int64_t row, int64_t col, const W* B, int64_t panel, T* C,
                            int64_t ldc, int64_t width, T beta) {
  Vec<T> acc[ROWS][kVecs] = {};
  for (int64_t k = 0; k < K; ++k) {
    Vec<T> b[kVecs];
    XLSTM_UNROLL
    for (int j = 0; j < kVecs; ++j) {
      b[j] = load_as<T>(B + j / kTileVecs * panel + k * kPanel<T> + j % kTileVecs * kLanes<T>);
      if (ROWS > 1) keep<T>(b[j]);
    }
    XLSTM_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      const Vec<T> a = splat(A[r * row + k * col]);
      XLSTM_UNROLL
      for (int j = 0; j < kVecs; ++j) acc[r][j] += a * b[j];
    }
  }
  XLSTM_UNROLL
  for (int r = 0; r < ROWS; ++r) {
    XLSTM_UNROLL
    for (int j = 0; j < kVecs; ++j) {
      const int64_t lanes = width - j * kLanes<T>;
      if (lanes <= 0) continue;
      T* c = C + r * ldc + j * kLanes<T>;
      store_n(c, beta == 0 ? acc[r][j] : beta * load_n(c, lanes) + acc[r][j], lanes);
    }
  }
}

template <class T, class W>
struct Product {
  int64_t M, N, k0, k1;
  Strided<T> A;
  PackedB<T, W> B;
  T* C;
  int64_t ldc;
  T beta;
};

// Rows [m, m + ROWS) of the product, columns from n on: as many vectors as the tile takes.
template <class T, class W, int ROWS, int kVecs = kTileVecs>
XLSTM_INLINE void tile_at(const Product<T, W>& p, int64_t m, int64_t n) {
  gemm_tile<T, W, ROWS, kVecs>(p.k1 - p.k0, p.A.data + m * p.A.row + p.k0 * p.A.col, p.A.row, p.A.col,
                               p.B.data + n * p.B.K + p.k0 * kPanel<T>, p.B.K * kPanel<T>, p.C + m * p.ldc + n, p.ldc,
                               p.N - n, p.beta);
}

// At least that many rows, at most kTileRows. Of a last panel the vectors that are in use.
template <class T, class W, int ROWS = kTileRows>
XLSTM_INLINE void one_panel(const Product<T, W>& p, int64_t rows, int64_t m, int64_t n) {
  if (rows == ROWS) return p.N - n > kLanes<T> ? tile_at<T, W, ROWS>(p, m, n) : tile_at<T, W, ROWS, 1>(p, m, n);
  if constexpr (ROWS > 1) one_panel<T, W, ROWS - 1>(p, rows, m, n);
}

constexpr int kFewRows = 3;

template <class T, class W, int ROWS = kFewRows>
XLSTM_INLINE void few_rows(const Product<T, W>& p) {
  if constexpr (ROWS > 1) {
    if (p.M < ROWS) return few_rows<T, W, ROWS - 1>(p);
  }
  constexpr int64_t kWide = panels_for(ROWS) * kPanel<T>;
  int64_t n = 0;
  for (; n + kWide <= p.N; n += kWide) tile_at<T, W, ROWS, panels_for(ROWS) * kTileVecs>(p, 0, n);
  for (; n < p.N; n += kPanel<T>) tile_at<T, W, ROWS>(p, 0, n);
}

}  // namespace

template <class T, class W>
void gemm(int64_t M, int64_t N, int64_t k0, int64_t k1, Strided<T> A, PackedB<T, W> B, T* C, int64_t ldc, T beta) {
  const Product<T, W> p = {M, N, k0, k1, A, B, C, ldc, beta};
  if (M <= kFewRows) return few_rows<T, W>(p);
  const int64_t tiles = ceil_div(M, kTileRows);  // of nearly equal height: a low tile is an inefficient one
  for (int64_t n = 0; n < N; n += kPanel<T>) {
    for (int64_t tile = 0, m = 0; tile < tiles; ++tile) {
      const int64_t rows = (M - m) / (tiles - tile);
      one_panel<T, W>(p, rows, m, n);
      m += rows;
    }
  }
}

#define XLSTM_GEMM(T, W) \
  template void gemm<T, W>(int64_t, int64_t, int64_t, int64_t, Strided<T>, PackedB<T, W>, T*, int64_t, T);
XLSTM_GEMM(float, float)
XLSTM_GEMM(float, Bf16)
XLSTM_GEMM(double, double)
#undef XLSTM_GEMM

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
