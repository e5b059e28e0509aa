#pragma once
// 8x8 matrices of 16-bit elements between shared memory and the registers of a warp.
//
// Lane 8 i + r gives the address of row r of matrix i (16 bytes, aligned). Lane l holds elements (l / 4, 2 (l % 4)) and
// the next one of every matrix in one register; with trans, of its transpose.
#include "cuda/device/platform.h"

namespace xlstm::device {

#define XLSTM_LDMATRIX(trans)                                                                \
  if constexpr (kMatrices == 1) {                                                            \
    asm volatile("ldmatrix.sync.aligned.m8n8.x1" trans ".shared.b16 {%0}, [%1];"             \
                 : "=r"(r[0])                                                                \
                 : "r"(address)                                                              \
                 : "memory");                                                                \
  } else if constexpr (kMatrices == 2) {                                                     \
    asm volatile("ldmatrix.sync.aligned.m8n8.x2" trans ".shared.b16 {%0, %1}, [%2];"         \
                 : "=r"(r[0]), "=r"(r[1])                                                    \
                 : "r"(address)                                                              \
                 : "memory");                                                                \
  } else {                                                                                   \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" trans ".shared.b16 {%0, %1, %2, %3}, [%4];" \
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])                            \
                 : "r"(address)                                                              \
                 : "memory");                                                                \
  }

template <int kMatrices>
XLSTM_DEVICE void ldmatrix(uint32_t (&r)[kMatrices], uint32_t address, [[maybe_unused]] Source where = Source::here()) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
#if XLSTM_SIMT
  simt::ldmatrix(kMatrices, false, r, address, where);
#else
  XLSTM_LDMATRIX("")
#endif
}

template <int kMatrices>
XLSTM_DEVICE void ldmatrix_trans(uint32_t (&r)[kMatrices], uint32_t address,
                                 [[maybe_unused]] Source where = Source::here()) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
#if XLSTM_SIMT
  simt::ldmatrix(kMatrices, true, r, address, where);
#else
  XLSTM_LDMATRIX(".trans")
#endif
}

#undef XLSTM_LDMATRIX

// sm_90.
#define XLSTM_STMATRIX(trans)                                                                                     \
  if constexpr (kMatrices == 1) {                                                                                 \
    XLSTM_ASM_SM90("stmatrix.sync.aligned.m8n8.x1" trans ".shared.b16 [%0], {%1};" ::"r"(address),                \
                   "r"(r[0]) : "memory");                                                                         \
  } else if constexpr (kMatrices == 2) {                                                                          \
    XLSTM_ASM_SM90("stmatrix.sync.aligned.m8n8.x2" trans ".shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(r[0]), \
                   "r"(r[1]) : "memory");                                                                         \
  } else {                                                                                                        \
    XLSTM_ASM_SM90("stmatrix.sync.aligned.m8n8.x4" trans ".shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),    \
                   "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");                                        \
  }

template <int kMatrices>
XLSTM_DEVICE void stmatrix(uint32_t address, const uint32_t (&r)[kMatrices],
                           [[maybe_unused]] Source where = Source::here()) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
#if XLSTM_SIMT
  simt::stmatrix(kMatrices, false, r, address, where);
#else
  XLSTM_STMATRIX("")
#endif
}

template <int kMatrices>
XLSTM_DEVICE void stmatrix_trans(uint32_t address, const uint32_t (&r)[kMatrices],
                                 [[maybe_unused]] Source where = Source::here()) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
#if XLSTM_SIMT
  simt::stmatrix(kMatrices, true, r, address, where);
#else
  XLSTM_STMATRIX(".trans")
#endif
}

#undef XLSTM_STMATRIX

// Transpose of one 8x8 matrix held as above.
XLSTM_DEVICE uint32_t movmatrix_trans(uint32_t value, [[maybe_unused]] Source where = Source::here()) {
#if XLSTM_SIMT
  return simt::movmatrix_transposed(value, where);
#else
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(value));
  return result;
#endif
}

}  // namespace xlstm::device
