#pragma once
// Parts of CUDA C++ that a kernel may use and that the host build must carry over.
#include "cuda/device/device.h"

namespace selftest {

__device__ constexpr int kTable[4] = {1, 2, 3, 5};
__constant__ float kConstants[2] = {0.5f, 2.f};

template <class T>
struct LanguageShared {
  T values[64];
};

// A template, tables, and a dependent shared type; 64 threads.
template <class T, int kFactor>
__global__ void template_kernel(T* out) {
  XLSTM_SHARED(LanguageShared<T>, s);
  s.values[threadIdx.x] =
      static_cast<T>(threadIdx.x * kFactor + kTable[threadIdx.x & 3]) * static_cast<T>(kConstants[1]);
  __syncthreads();
  out[threadIdx.x] = s.values[63 - threadIdx.x];
}

// Three-dimensional blocks and grids: every thread writes its own number.
static __global__ void index_kernel(float* out) {
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] = static_cast<float>(block * 1000 + thread);
}

// 80 KB of local variables.
static __global__ void large_locals_kernel(const int* stride, float* out) {
  constexpr int kSize = 20000;
  float values[kSize];
  for (int i = 0; i < kSize; ++i) values[i] = static_cast<float>(i & 7);
  float sum = 0.f;
  for (int i = 0; i < kSize; ++i) sum += values[i * *stride % kSize];
  out[threadIdx.x] = sum;
}

// Threads past the end leave at once: no barrier follows.
static __global__ void guarded_kernel(float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  out[i] = static_cast<float>(i);
}

}  // namespace selftest
