// The matrix product itself: a tile of C in registers, one panel of B and kTileRows rows of A at a time.
#include "cpu/simd/gemm.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {
namespace {

template <class T, int ROWS>
XLSTM_INLINE void gemm_tile(int64_t K, const T* A, int64_t row, int64_t col, const T* B, T* C, int64_t ldc,
                            int64_t width, T beta) {
  Vec<T> acc[ROWS][kTileVecs] = {};
  for (int64_t k = 0; k < K; ++k) {
    Vec<T> b[kTileVecs];
    XLSTM_UNROLL
    for (int j = 0; j < kTileVecs; ++j) b[j] = load(B + k * kPanel<T> + j * kLanes<T>);
    XLSTM_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      const Vec<T> a = splat(A[r * row + k * col]);
      XLSTM_UNROLL
      for (int j = 0; j < kTileVecs; ++j) acc[r][j] += a * b[j];
    }
  }
  XLSTM_UNROLL
  for (int r = 0; r < ROWS; ++r) {
    XLSTM_UNROLL
    for (int j = 0; j < kTileVecs; ++j) {
      const int64_t lanes = width - j * kLanes<T>;
      if (lanes <= 0) continue;
      T* c = C + r * ldc + j * kLanes<T>;
      store_n(c, beta == 0 ? acc[r][j] : beta * load_n(c, lanes) + acc[r][j], lanes);
    }
  }
}

// The tile function for the rows left over at the bottom, 1 .. kTileRows.
template <class T, int ROWS = kTileRows>
XLSTM_INLINE void gemm_rows(int64_t rows, int64_t K, const T* A, int64_t row, int64_t col, const T* B, T* C,
                            int64_t ldc, int64_t width, T beta) {
  if (rows == ROWS) return gemm_tile<T, ROWS>(K, A, row, col, B, C, ldc, width, beta);
  if constexpr (ROWS > 1) gemm_rows<T, ROWS - 1>(rows, K, A, row, col, B, C, ldc, width, beta);
}

}  // namespace

template <class T>
void gemm(int64_t M, int64_t N, int64_t k0, int64_t k1, Strided<T> A, PackedB<T> B, T* C, int64_t ldc, T beta) {
  for (int64_t n = 0; n < N; n += kPanel<T>) {
    const T* panel = B.data + n * B.K + k0 * kPanel<T>;
    const int64_t width = min_of(kPanel<T>, N - n);
    for (int64_t m = 0; m < M; m += kTileRows) {
      gemm_rows<T>(min_of(kTileRows, M - m), k1 - k0, A.data + m * A.row + k0 * A.col, A.row, A.col, panel,
                   C + m * ldc + n, ldc, width, beta);
    }
  }
}

template void gemm<float>(int64_t, int64_t, int64_t, int64_t, Strided<float>, PackedB<float>, float*, int64_t, float);
template void gemm<double>(int64_t, int64_t, int64_t, int64_t, Strided<double>, PackedB<double>, double*, int64_t,
                           double);

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
