#pragma once
// The two ways a kernel is compiled: by nvcc for a device, or by a C++ compiler for the host executor (-DXLSTM_SIMT).
#ifndef XLSTM_SIMT
#define XLSTM_SIMT 0
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

#if XLSTM_SIMT
#include "simt/cuda_builtins.h"
#else
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#define XLSTM_DEVICE __device__ __forceinline__
// A rare path, once in a kernel's code and not at each place that takes it. What it gets by reference must not be in
// registers.
#define XLSTM_DEVICE_CALL inline __device__ __noinline__

// Kernels of an architecture keep their bodies in `#if XLSTM_SM90`: true on the host executor and in nvcc's host pass.
// XLSTM_SM90A needs code for sm_90a, not sm_90.
#if !defined(__CUDA_ARCH__)
#define XLSTM_SM90 1
#define XLSTM_SM90A 1
#else
#define XLSTM_SM90 (__CUDA_ARCH__ >= 900)  // clusters, mbarrier, TMA, st.async, stmatrix
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define XLSTM_SM90A 1  // wgmma and fast multicast: compute capability 9.0 only
#else
#define XLSTM_SM90A 0
#endif
#endif

// An instruction that some targets lack: there it traps.
#if XLSTM_SM90
#define XLSTM_ASM_SM90(...) asm volatile(__VA_ARGS__)
#else
#define XLSTM_ASM_SM90(...) __trap()
#endif
#if XLSTM_SM90A
#define XLSTM_ASM_SM90A(...) asm volatile(__VA_ARGS__)
#else
#define XLSTM_ASM_SM90A(...) __trap()
#endif

namespace xlstm::device {

// Where a wrapper was called: its last argument, always defaulted. The host executor reports it; on a device it is
// empty.
#if XLSTM_SIMT
using Source = simt::Source;
#else
struct Source {
  __host__ __device__ static constexpr Source here() { return {}; }
};
#endif

// The same bits as another type.
template <class To, class From>
XLSTM_DEVICE To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// The same 4 or 8 bytes, but the compiler knows nothing of them: what depends on them is computed after this place,
// and what they are made of before it.
template <class T>
XLSTM_DEVICE T opaque(T x) {
#if XLSTM_SIMT
  return x;
#else
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  Bits bits = bits_as<Bits>(x);
  if constexpr (sizeof(T) == 4) {
    asm volatile("" : "+r"(bits));
  } else {
    asm volatile("" : "+l"(bits));
  }
  return bits_as<T>(bits);
#endif
}

}  // namespace xlstm::device
