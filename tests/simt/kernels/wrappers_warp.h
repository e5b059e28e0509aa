#pragma once
// One warp, one instruction: tensor-core products and matrices of 16-bit elements.
#include "cuda/device/device.h"

namespace selftest {

enum class MmaType { bf16, f16, tf32 };

template <MmaType kType>
struct MmaTraits {
  using Element = __nv_bfloat16;
  static constexpr int kDepth = 16;
};
template <>
struct MmaTraits<MmaType::f16> {
  using Element = __half;
  static constexpr int kDepth = 16;
};
template <>
struct MmaTraits<MmaType::tf32> {
  using Element = float;
  static constexpr int kDepth = 8;
};

// D (16, 8) += A (16, K) B (K, 8), all with contiguous rows.
template <MmaType kType>
__global__ void mma_kernel(const typename MmaTraits<kType>::Element* A, const typename MmaTraits<kType>::Element* B,
                           float* D) {
  using namespace xlstm::device;
  constexpr int K = MmaTraits<kType>::kDepth;
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  uint32_t a[4], b[2];
  float d[4];
  for (int i = 0; i < 4; ++i) d[i] = D[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
  for (int i = 0; i < 4; ++i) {
    const int row = g + i % 2 * 8;
    if constexpr (kType == MmaType::tf32) {
      a[i] = __float_as_uint(A[row * K + t + i / 2 * 4]);
    } else {
      a[i] = *reinterpret_cast<const uint32_t*>(&A[row * K + 2 * t + i / 2 * 8]);
    }
  }
  for (int i = 0; i < 2; ++i) {
    if constexpr (kType == MmaType::tf32) {
      b[i] = __float_as_uint(B[(t + i * 4) * 8 + g]);
    } else {
      const int k = 2 * t + i * 8;
      const typename MmaTraits<kType>::Element pair[2] = {B[k * 8 + g], B[(k + 1) * 8 + g]};
      b[i] = bits_as<uint32_t>(pair);
    }
  }
  if constexpr (kType == MmaType::tf32) {
    mma_m16n8k8_tf32(d, a, b);
  } else {
    mma_m16n8k16<typename MmaTraits<kType>::Element>(d, a, b);
  }
  for (int i = 0; i < 4; ++i) D[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

// D (8, 8) += A (8, 4) B (4, 8)
static __global__ void mma_f64_kernel(const double* A, const double* B, double* D) {
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
  double* d = &D[g * 8 + 2 * t];
  xlstm::device::mma_m8n8k4_f64(d[0], d[1], A[g * 4 + t], B[t * 8 + g]);
}

static __global__ void round_tf32_kernel(const float* x, float* out) {
  out[threadIdx.x] = __uint_as_float(xlstm::device::round_tf32(x[threadIdx.x]));
}

struct MatricesShared {
  alignas(16) uint16_t rows[32][8];
};

// The register's two elements, low half first.
__device__ __forceinline__ void put_halves(float* out, uint32_t r) {
  out[0] = static_cast<float>(r & 0xffff);
  out[1] = static_cast<float>(r >> 16);
}

// x (32, 8) -> out (matrices, 32 lanes, 2)
template <int kMatrices, bool kTrans>
__global__ void ldmatrix_kernel(const uint16_t* x, float* out) {
  using namespace xlstm::device;
  XLSTM_SHARED(MatricesShared, s);
  const int lane = threadIdx.x;
  for (int i = 0; i < 8; ++i) s.rows[lane][i] = x[lane * 8 + i];
  __syncwarp();
  uint32_t r[kMatrices];
  const uint32_t address = shared_address(s.rows[lane % (8 * kMatrices)]);
  if constexpr (kTrans) {
    ldmatrix_trans(r, address);
  } else {
    ldmatrix(r, address);
  }
  for (int i = 0; i < kMatrices; ++i) put_halves(&out[(i * 32 + lane) * 2], r[i]);
}

// x (matrices, 32 lanes, 2) -> out (8 matrices, 8)
template <int kMatrices, bool kTrans>
__global__ void stmatrix_kernel(const uint16_t* x, float* out) {
#if XLSTM_SM90
  using namespace xlstm::device;
  XLSTM_SHARED(MatricesShared, s);
  const int lane = threadIdx.x;
  uint32_t r[kMatrices];
  for (int i = 0; i < kMatrices; ++i) r[i] = x[(i * 32 + lane) * 2] | uint32_t{x[(i * 32 + lane) * 2 + 1]} << 16;
  const uint32_t address = shared_address(s.rows[lane % (8 * kMatrices)]);
  if constexpr (kTrans) {
    stmatrix_trans(address, r);
  } else {
    stmatrix(address, r);
  }
  __syncwarp();
  for (int i = lane; i < kMatrices * 64; i += 32) out[i] = static_cast<float>(s.rows[i / 8][i % 8]);
#endif
}

// x and out (32 lanes, 2)
static __global__ void movmatrix_kernel(const uint16_t* x, float* out) {
  const int lane = threadIdx.x;
  put_halves(&out[2 * lane], xlstm::device::movmatrix_trans(x[2 * lane] | uint32_t{x[2 * lane + 1]} << 16));
}

}  // namespace selftest
