#pragma once
// A small matrix product for operands that live in cache: C (M x N) = beta C + A (M x K) B (K x N).
// B is packed into panels of kPanel columns, zero-padded; A is read in place through any strides.
#include "cpu/simd/vec.h"

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {

constexpr int kTileVecs = 2;                             // vectors across a panel
constexpr int kTileRows = kVecRegisters == 32 ? 12 : 6;  // rows of C held in registers
template <class T>
constexpr int kPanel = kTileVecs * kLanes<T>;

template <class T>
XLSTM_INLINE int64_t packed_size(int64_t K, int64_t N) {
  return ceil_div(N, kPanel<T>) * kPanel<T> * K;
}

template <class T, class W = T>  // W: T, or Bf16 where the values fit it
struct PackedB {
  const W* data;
  int64_t K;  // rows of every panel
};

template <class T>
struct Strided {
  const T* data;
  int64_t row, col;
};

// B (K x N) with contiguous rows, row k scaled by scale[k] if given.
template <class T, class W = T>
XLSTM_INLINE void pack_rows(const T* B, int64_t stride, int64_t K, int64_t N, W* packed, const T* scale = nullptr) {
  for (int64_t n = 0; n < N; n += kPanel<T>) {
    const int64_t width = min_of(kPanel<T>, N - n);
    for (int64_t k = 0; k < K; ++k, packed += kPanel<T>) {
      const Vec<T> s = splat(scale ? scale[k] : static_cast<T>(1));
      XLSTM_UNROLL
      for (int j = 0; j < kTileVecs; ++j) {
        const int64_t lanes = width - j * kLanes<T>;
        store_as<T>(packed + j * kLanes<T>,
                    lanes > 0 ? s * load_n(B + k * stride + n + j * kLanes<T>, lanes) : splat<T>(0));
      }
    }
  }
}

// Transposes a square of kLanes x kLanes in registers: at distance d, rows r and r + d exchange the lanes that differ
// from them in bit d.
template <class T>
XLSTM_INLINE void transpose_square(Vec<T> (&rows)[kLanes<T>]) {
  XLSTM_UNROLL
  for (int d = 1; d < kLanes<T>; d *= 2) {
    IntVec<T> low{}, high{};
    XLSTM_UNROLL
    for (int l = 0; l < kLanes<T>; ++l) {
      low[l] = (l & d) ? kLanes<T> + l - d : l;
      high[l] = (l & d) ? kLanes<T> + l : l + d;
    }
    XLSTM_UNROLL
    for (int r = 0; r < kLanes<T>; ++r) {
      if (r & d) continue;
      const Vec<T> a = rows[r], b = rows[r + d];
#if defined(__clang__)
      Vec<T> x, y;
      XLSTM_UNROLL
      for (int l = 0; l < kLanes<T>; ++l) {
        x[l] = (l & d) ? b[l - d] : a[l];
        y[l] = (l & d) ? b[l] : a[l + d];
      }
      rows[r] = x, rows[r + d] = y;
#else
      rows[r] = __builtin_shuffle(a, b, low);
      rows[r + d] = __builtin_shuffle(a, b, high);
#endif
    }
  }
}

// B (K x N) given as its transpose, N rows of K contiguous elements.
template <class T, class W = T>
XLSTM_INLINE void pack_cols(const T* Bt, int64_t stride, int64_t K, int64_t N, W* packed) {
  constexpr int kSide = kLanes<T>;
  for (int64_t n = 0; n < N; n += kPanel<T>, packed += kPanel<T> * K) {
    for (int64_t j = 0; j < kPanel<T>; j += kSide) {
      for (int64_t k = 0; k < K; k += kSide) {
        const int64_t depth = min_of(kSide, K - k);
        Vec<T> rows[kSide];
        XLSTM_UNROLL
        for (int r = 0; r < kSide; ++r) {
          rows[r] = n + j + r < N ? load_n(Bt + (n + j + r) * stride + k, depth) : splat<T>(0);
        }
        transpose_square<T>(rows);
        XLSTM_UNROLL
        for (int r = 0; r < kSide; ++r) {
          if (r < depth) store_as<T>(packed + (k + r) * kPanel<T> + j, rows[r]);
        }
      }
    }
  }
}

// C (M x N) = beta C + A[:, k0:k1] B[k0:k1, :]. C has contiguous rows; it is not read where beta is 0.
template <class T, class W = T>
void gemm(int64_t M, int64_t N, int64_t k0, int64_t k1, Strided<T> A, PackedB<T, W> B, T* C, int64_t ldc, T beta);

// Products with a causal (lower triangular) L x L matrix, in bands of rows, skipping most of what is zero.
constexpr int64_t kBand = kTileRows;

// out = A B, elements with column <= row only; the rest of `out` is not defined.
template <class T>
XLSTM_INLINE void gemm_causal_out(int64_t L, int64_t K, Strided<T> A, PackedB<T> B, T* out, int64_t ldc) {
  for (int64_t t = 0; t < L; t += kBand) {
    const int64_t rows = min_of(kBand, L - t);
    gemm<T>(rows, t + rows, 0, K, {A.data + t * A.row, A.row, A.col}, B, out + t * ldc, ldc, 0);
  }
}

// Whether rows [k0, k1) of B hold inf or NaN. Four sums hide the latency of an addition.
template <class T>
XLSTM_INLINE bool has_non_finite(int64_t N, int64_t k0, int64_t k1, PackedB<T> B) {
  const int64_t vectors = (k1 - k0) * kTileVecs;
  Vec<T> sums[4] = {};
  for (int64_t n = 0; n < N; n += kPanel<T>) {
    const T* from = B.data + n * B.K + k0 * kPanel<T>;
    int64_t x = 0;
    for (; x + 4 <= vectors; x += 4) {
      XLSTM_UNROLL
      for (int j = 0; j < 4; ++j) sums[j] += load(from + (x + j) * kLanes<T>) * static_cast<T>(0);
    }
    for (; x < vectors; ++x) sums[0] += load(from + x * kLanes<T>) * static_cast<T>(0);
  }
  return reduce_add<T>(sums[0] + sums[1] + sums[2] + sums[3]) != 0;
}

// C (L x N) = beta C + P B with P lower triangular. A row of C depends on no row of B after it, even of inf or NaN:
// a band that meets one, where a zero of P would make NaN of it, is multiplied row by row.
template <class T>
XLSTM_INLINE void gemm_causal(int64_t L, int64_t N, const T* P, int64_t ldp, PackedB<T> B, T* C, int64_t ldc, T beta) {
  for (int64_t t = 0; t < L; t += kBand) {
    const int64_t rows = min_of(kBand, L - t), step = has_non_finite<T>(N, t, t + rows, B) ? 1 : rows;
    for (int64_t r = t; r < t + rows; r += step) {
      gemm<T>(step, N, 0, r + step, {P + r * ldp, ldp, 1}, B, C + r * ldc, ldc, beta);
    }
  }
}

// C (L x N) = beta C + P^T B with P lower triangular. A row of C depends on no row of B before it, as above.
template <class T>
XLSTM_INLINE void gemm_causal_transposed(int64_t L, int64_t N, const T* P, int64_t ldp, PackedB<T> B, T* C, int64_t ldc,
                                         T beta) {
  for (int64_t s = 0; s < L; s += kBand) {
    const int64_t rows = min_of(kBand, L - s), step = has_non_finite<T>(N, s, s + rows, B) ? 1 : rows;
    for (int64_t r = s; r < s + rows; r += step) {
      gemm<T>(step, N, r, L, {P + r, 1, ldp}, B, C + r * ldc, ldc, beta);
    }
  }
}

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
