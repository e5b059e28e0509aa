#pragma once
// Causal linear attention without gates, in chunks of 64, head dim 64: the weight of an mLSTM forward kernel.
// One block of four warps per head. Per chunk: P = tril(Q K^T), O = P V + Q S, S += K^T V, with S in registers.
#include "cuda/device/device.h"
#include "kernels/gemm.h"

namespace selftest {

struct AttentionShared {
  __nv_bfloat16 q[64 * 64], k[64 * 64], v[64 * 64], state[64 * 64];
};

__device__ __forceinline__ uint32_t pack(float low, float high) {
  return xlstm::device::bits_as<uint32_t>(__floats2bfloat162_rn(low, high));
}

// The product of one A fragment with the two B fragments that an ldmatrix x4 loads: 16 columns of d.
__device__ __forceinline__ void multiply_pair(float (&d)[8][4], int pair, const uint32_t (&a)[4],
                                              const uint32_t (&b)[4]) {
  using namespace xlstm::device;
  mma_m16n8k16<__nv_bfloat16>(d[2 * pair], a, {b[0], b[1]});
  mma_m16n8k16<__nv_bfloat16>(d[2 * pair + 1], a, {b[2], b[3]});
}

// Q, K, V bf16 and O float, (heads, seqlen, 64)
static __global__ void __launch_bounds__(128) linear_attention_kernel(const __nv_bfloat16* Q, const __nv_bfloat16* K,
                                                                      const __nv_bfloat16* V, float* O, int seqlen) {
  using namespace xlstm::device;
  XLSTM_SHARED(AttentionShared, s);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row0 = warp * 16 + lane / 4, column0 = 2 * (lane % 4);
  const size_t head = size_t{blockIdx.x} * seqlen * 64;
  const int low_row = lane % 16, high_row = lane % 8 + lane / 16 * 8;
  const int low_chunk = lane / 16, high_chunk = lane / 8 % 2;
  float state[8][4] = {};
  for (int chunk = 0; chunk < seqlen / 64; ++chunk) {
    __syncthreads();
    for (int i = threadIdx.x; i < 8 * 64; i += 128) {
      const int row = i / 8, at = swizzled(row, i % 8);
      const size_t from = head + size_t(chunk * 64 + row) * 64 + i % 8 * 8;
      cp_async<16>(shared_address(&s.q[at]), Q + from);
      cp_async<16>(shared_address(&s.k[at]), K + from);
      cp_async<16>(shared_address(&s.v[at]), V + from);
    }
    cp_async_commit();
    for (int i = 0; i < 16; ++i) {
      const float* value = &state[i / 2][i % 2 * 2];
      *reinterpret_cast<__nv_bfloat162*>(&s.state[swizzled(row0 + i % 2 * 8, i / 2) + column0]) =
          __floats2bfloat162_rn(value[0], value[1]);
    }
    cp_async_wait<0>();
    __syncthreads();

    uint32_t q[4][4];
    for (int k = 0; k < 4; ++k) ldmatrix(q[k], shared_address(&s.q[swizzled(warp * 16 + low_row, 2 * k + low_chunk)]));
    float p[8][4] = {}, o[8][4] = {};
    for (int k = 0; k < 4; ++k) {
      for (int j = 0; j < 4; ++j) {
        uint32_t b[4];
        ldmatrix(b, shared_address(&s.k[swizzled(j * 16 + high_row, 2 * k + high_chunk)]));
        multiply_pair(p, j, q[k], b);
      }
    }
    for (int i = 0; i < 32; ++i) {
      if (i / 4 * 8 + column0 + i % 2 > row0 + i / 2 % 2 * 8) p[i / 4][i % 4] = 0.f;
    }
    for (int k = 0; k < 4; ++k) {
      const float (&left)[4] = p[2 * k], (&right)[4] = p[2 * k + 1];
      const uint32_t p_fragment[4] = {pack(left[0], left[1]), pack(left[2], left[3]), pack(right[0], right[1]),
                                      pack(right[2], right[3])};
      for (int j = 0; j < 4; ++j) {
        const int at = swizzled(k * 16 + low_row, 2 * j + low_chunk);
        uint32_t v[4], c[4];
        ldmatrix_trans(v, shared_address(&s.v[at]));
        ldmatrix_trans(c, shared_address(&s.state[at]));
        multiply_pair(o, j, p_fragment, v);
        multiply_pair(o, j, q[k], c);
      }
    }
    for (int k = 0; k < 4; ++k) {
      uint32_t k_transposed[4];
      ldmatrix_trans(k_transposed, shared_address(&s.k[swizzled(k * 16 + high_row, 2 * warp + high_chunk)]));
      for (int j = 0; j < 4; ++j) {
        uint32_t v[4];
        ldmatrix_trans(v, shared_address(&s.v[swizzled(k * 16 + low_row, 2 * j + low_chunk)]));
        multiply_pair(state, j, k_transposed, v);
      }
    }
    for (int i = 0; i < 16; ++i) {
      const size_t row = chunk * 64 + row0 + i % 2 * 8;
      *reinterpret_cast<float2*>(&O[head + row * 64 + i / 2 * 8 + column0]) =
          make_float2(o[i / 2][i % 2 * 2], o[i / 2][i % 2 * 2 + 1]);
    }
  }
}

}  // namespace selftest
