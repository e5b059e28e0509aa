#pragma once
// Functions of one thread or one warp: approximations, bits, votes, atomics, loads and stores.
#include "cuda/device/device.h"

namespace selftest {

constexpr int kMathFunctions = 5;

// x (32), out (functions, 32)
static __global__ void math_kernel(const float* x, float* out) {
  using namespace xlstm::device;
  const int lane = threadIdx.x;
  const float positive = fabsf(x[lane]) + 0.125f;
  out[0 * 32 + lane] = exp2_approx(x[lane]);
  out[1 * 32 + lane] = log2_approx(positive);
  out[2 * 32 + lane] = reciprocal_approx(positive);
  out[3 * 32 + lane] = rsqrt_approx(positive);
  out[4 * 32 + lane] = tanh_approx(x[lane]);
}

// Results for subnormal numbers: zero in, zero out. out (5)
static __global__ void subnormal_kernel(const float* x, float* out) {
  using namespace xlstm::device;
  out[0] = exp2_approx(x[0]);                  // -127
  out[1] = reciprocal_approx(x[1]);            // 2^127
  out[2] = reciprocal_approx(x[2]) > 3.4e38f;  // 2^-127
  out[3] = rsqrt_approx(x[2]) > 3.4e38f;       // 2^-127
  out[4] = log2_approx(x[2]) < -1000.f;        // 2^-127
}

constexpr int kBitFunctions = 16;

// x (32) unsigned, out (functions, 32)
static __global__ void bits_kernel(const unsigned* x, float* out) {
  const int lane = threadIdx.x;
  const unsigned value = x[lane];
  int at = lane;
  const auto put = [&](unsigned result) {
    out[at] = static_cast<float>(result & 0xffffff);
    at += 32;
  };
  put(__popc(value));
  put(__clz(value));
  put(__ffs(value));
  put(__brev(value));
  put(__byte_perm(value, ~value, 0x6143));
  put(__umulhi(value, 0x9E3779B9u));
  put(__shfl_sync(~0u, value, 5));
  put(__shfl_sync(~0u, value, lane + 1, 8));
  put(__shfl_up_sync(~0u, value, 3));
  put(__shfl_down_sync(~0u, value, 3, 16));
  put(__ballot_sync(~0u, value & 1));
  put(__any_sync(~0u, lane == 7) * 2 + __all_sync(~0u, lane < 32));
  put(__reduce_add_sync(~0u, value & 0xff));
  put(__reduce_max_sync(~0u, value & 0xff) * 256 + __reduce_min_sync(~0u, value & 0xff));
  put(__reduce_or_sync(~0u, 1u << lane % 5) * 256 + __reduce_and_sync(~0u, value | 6) % 256);
  put(__match_any_sync(~0u, lane % 3));
}

// 64 threads: counts, both quantifiers, signed minimum; atomics on four words. out (64 + 8)
static __global__ void block_kernel(int* words, float* out) {
  const int thread = threadIdx.x;
  const int count = __syncthreads_count(thread % 3 == 0);
  const int all = __syncthreads_and(thread < 64), any = __syncthreads_or(thread == 63);
  const int lowest = __reduce_min_sync(~0u, thread - 40);
  out[thread] = static_cast<float>(count * 100 + all * 10 + any + lowest * 1000);
  atomicAdd(&words[0], thread);
  atomicMax(&words[1], thread);
  atomicMin(&words[2], -thread);
  atomicOr(&words[3], 1 << thread % 20);
  atomicXor(&words[4], 1 << thread % 7);
  if (thread == 5) atomicExch(&words[5], 77);
  if (thread == 6) atomicCAS(&words[6], 3, 99);
  atomicSub(&words[7], 1);
  __syncthreads();
  if (thread < 8) out[64 + thread] = static_cast<float>(words[thread]);
}

// Copies 64 floats by each kind of 16-byte access, then one word by each kind of flag access. out (64 + 3)
static __global__ void access_kernel(const float* x, float* out, float* flags) {
  using namespace xlstm::device;
  const float4* from = reinterpret_cast<const float4*>(x);
  float4* to = reinterpret_cast<float4*>(out);
  const int thread = threadIdx.x;
  if (thread < 8) {
    store_streaming(&to[thread], load_streaming(&from[thread]));
  } else if (thread < 16) {
    store_l2(&to[thread], load_l2(&from[thread]));
  }
  if (thread != 31) return;
  store_volatile(&flags[0], load_volatile(&x[0]));
  store_relaxed(&flags[1], load_relaxed(&x[1]));
  store_release(&flags[2], load_acquire(&x[2]));
  out[64] = load_volatile(&flags[0]), out[65] = load_relaxed(&flags[1]), out[66] = load_acquire(&flags[2]);
}

}  // namespace selftest
