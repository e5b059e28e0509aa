#pragma once
// Tensor-core products of one warp: D += A B with fp32 accumulators, fp64 ones for fp64.
//
// Fragments of lane l, g = l / 4, c = 2 (l % 4). 16-bit types, K = 16, two elements per register, low half first:
//   a[0] A[g][c]      a[1] A[g + 8][c]      a[2] A[g][c + 8]      a[3] A[g + 8][c + 8]
//   b[0] B[c][g]      b[1] B[c + 8][g]      (elements c and c + 1 along K)
//   d[0], d[1] D[g][c], D[g][c + 1]         d[2], d[3] D[g + 8][c], D[g + 8][c + 1]
// tf32, K = 8, t = l % 4: a = A[g][t], A[g + 8][t], A[g][t + 4], A[g + 8][t + 4]; b = B[t][g], B[t + 4][g].
// fp64, 8 x 8, K = 4: a = A[g][t]; b = B[t][g]; d[0], d[1] D[g][c], D[g][c + 1].
#include "cuda/device/platform.h"

namespace xlstm::device {

template <class T>
constexpr bool kIsBf16 = false;
template <>
inline constexpr bool kIsBf16<__nv_bfloat16> = true;
template <class T>
constexpr bool kIsF16 = false;
template <>
inline constexpr bool kIsF16<__half> = true;

#define XLSTM_MMA(shape_and_types)                                                                                    \
  asm volatile("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

template <class T>
XLSTM_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                               [[maybe_unused]] Source where = Source::here()) {
  static_assert(kIsBf16<T> || kIsF16<T>);
#if XLSTM_SIMT
  simt::mma(kIsBf16<T> ? simt::Element::bf16 : simt::Element::f16, d, a, b, where);
#else
  if constexpr (kIsBf16<T>) {
    XLSTM_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
  } else {
    XLSTM_MMA("m16n8k16.row.col.f32.f16.f16.f32");
  }
#endif
}

// a and b hold fp32 bits: the low 13 are ignored.
XLSTM_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                   [[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::mma(simt::Element::tf32, d, a, b, where);
#else
  XLSTM_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
#endif
}

#undef XLSTM_MMA

XLSTM_DEVICE void mma_m8n8k4_f64(double& d0, double& d1, double a, double b,
                                 [[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  simt::mma_f64(d0, d1, a, b, where);
#else
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+d"(d0), "+d"(d1)
               : "d"(a), "d"(b));
#endif
}

// The nearest tf32, as fp32 bits; ties away from zero. NaN and infinities stay what they are.
XLSTM_DEVICE uint32_t round_tf32(float x) {
#if XLSTM_SIMT
  const uint32_t bits = bits_as<uint32_t>(x);
  const bool finite = (bits & 0x7f800000) != 0x7f800000;
  return finite ? (bits + 0x1000) & ~0x1fffu : x != x ? 0x7fffe000u : bits;
#else
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#endif
}

}  // namespace xlstm::device
