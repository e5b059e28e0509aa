#pragma once
// What CUDA C++ gives a kernel without an include, for kernels that a C++ compiler builds for the host executor.
// Here are the language, indices, warp and block functions, atomics and intrinsics; PTX is in cuda/device.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <driver_types.h>  // cudaError_t, cudaStream_t
#include <vector_functions.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "simt/executor.h"

// ---- language ----
// CUDA's own headers define some of these for a host compiler, __noinline__ in a way that libstdc++ cannot bear.
#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __shared__
#undef __grid_constant__
#undef __launch_bounds__
#undef __cluster_dims__
#undef __forceinline__
#undef __noinline__
#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __forceinline__ inline
#define __noinline__
#define __shared__ _Pragma("GCC error \"shared memory is one struct per kernel: XLSTM_SHARED(Type, name)\"")

// ---- indices ----
// Variables, not macros: the executor sets them whenever it switches threads.
#pragma GCC visibility push(hidden)
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
#pragma GCC visibility pop
constexpr int warpSize = 32;

// ---- block ----
inline void __syncthreads(simt::Source where = simt::Source::here()) {
  simt::syncthreads(false, where);
}
inline int __syncthreads_count(int predicate, simt::Source where = simt::Source::here()) {
  return simt::syncthreads(predicate != 0, where).count;
}
inline int __syncthreads_and(int predicate, simt::Source where = simt::Source::here()) {
  return simt::syncthreads(predicate != 0, where).all;
}
inline int __syncthreads_or(int predicate, simt::Source where = simt::Source::here()) {
  return simt::syncthreads(predicate != 0, where).any;
}

// The executor has no weak memory: fences order nothing more than the program does, and publish nothing by themselves.
// Flags between blocks go through acquire and release of cuda/device/memory.h.
inline void __threadfence_block() {}
inline void __threadfence() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned, simt::Source where = simt::Source::here()) {
  simt::check_live(where);
}
[[noreturn]] inline void __trap(simt::Source where = simt::Source::here()) {
  simt::fail("__trap()", where);
}

// ---- warp ----
inline void __syncwarp(unsigned mask = ~0u, simt::Source where = simt::Source::here()) {
  simt::syncwarp(mask, where);
}

namespace simt {
template <class T>
T shuffle_as(Shuffle kind, unsigned mask, T value, int lane, int width, Source where) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = shuffle(kind, mask, bits, lane, width, where);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
}  // namespace simt

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = warpSize, simt::Source where = simt::Source::here()) {
  return simt::shuffle_as(simt::Shuffle::index, mask, value, lane, width, where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                 simt::Source where = simt::Source::here()) {
  return simt::shuffle_as(simt::Shuffle::up, mask, value, static_cast<int>(delta), width, where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                   simt::Source where = simt::Source::here()) {
  return simt::shuffle_as(simt::Shuffle::down, mask, value, static_cast<int>(delta), width, where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize,
                  simt::Source where = simt::Source::here()) {
  return simt::shuffle_as(simt::Shuffle::exclusive_or, mask, value, lane_mask, width, where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, simt::Source where = simt::Source::here()) {
  return simt::vote(simt::Vote::ballot, mask, predicate != 0, where);
}
inline int __any_sync(unsigned mask, int predicate, simt::Source where = simt::Source::here()) {
  return simt::vote(simt::Vote::ballot, mask, predicate != 0, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, simt::Source where = simt::Source::here()) {
  return simt::vote(simt::Vote::ballot, mask, predicate == 0, where) == 0;
}
inline unsigned __match_any_sync(unsigned mask, unsigned value, simt::Source where = simt::Source::here()) {
  return simt::vote(simt::Vote::match_any, mask, value, where);
}

inline unsigned __reduce_add_sync(unsigned mask, unsigned value, simt::Source where = simt::Source::here()) {
  return simt::vote(simt::Vote::add, mask, value, where);
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value, simt::Source where = simt::Source::here()) {
  return simt::vote(simt::Vote::min, mask, value, where);
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value, simt::Source where = simt::Source::here()) {
  return simt::vote(simt::Vote::max, mask, value, where);
}
// Signed values in the order of unsigned ones: with the sign bit flipped.
inline int __reduce_add_sync(unsigned mask, int value, simt::Source where = simt::Source::here()) {
  return static_cast<int>(simt::vote(simt::Vote::add, mask, static_cast<unsigned>(value), where));
}
inline int __reduce_min_sync(unsigned mask, int value, simt::Source where = simt::Source::here()) {
  return static_cast<int>(simt::vote(simt::Vote::min, mask, static_cast<unsigned>(value) ^ 1u << 31, where) ^ 1u << 31);
}
inline int __reduce_max_sync(unsigned mask, int value, simt::Source where = simt::Source::here()) {
  return static_cast<int>(simt::vote(simt::Vote::max, mask, static_cast<unsigned>(value) ^ 1u << 31, where) ^ 1u << 31);
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, simt::Source where = simt::Source::here()) {
  return simt::vote(simt::Vote::bit_and, mask, value, where);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, simt::Source where = simt::Source::here()) {
  return simt::vote(simt::Vote::bit_or, mask, value, where);
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value, simt::Source where = simt::Source::here()) {
  return simt::vote(simt::Vote::bit_xor, mask, value, where);
}

// ---- atomics ----
namespace simt {
// Not instrumented, or its load and store would look like plain accesses that race; not inlined, or the caller's
// instrumentation would take it in.
template <class T, class F>
__attribute__((no_sanitize("thread"), noinline)) T read_modify_write(T* pointer, F update) {
  touch(pointer, sizeof(T), Access::atomic, __builtin_return_address(0));
  const T old = *pointer;
  *pointer = update(old);
  return old;
}
template <class T>
using Same = std::type_identity_t<T>;  // deduced from the pointer alone
}  // namespace simt

template <class T>
T atomicAdd(T* pointer, simt::Same<T> value) {
  return simt::read_modify_write(pointer, [value](T old) { return static_cast<T>(old + value); });
}
template <class T>
T atomicSub(T* pointer, simt::Same<T> value) {
  return simt::read_modify_write(pointer, [value](T old) { return static_cast<T>(old - value); });
}
template <class T>
T atomicMax(T* pointer, simt::Same<T> value) {
  return simt::read_modify_write(pointer, [value](T old) { return old > value ? old : value; });
}
template <class T>
T atomicMin(T* pointer, simt::Same<T> value) {
  return simt::read_modify_write(pointer, [value](T old) { return old < value ? old : value; });
}
template <class T>
T atomicAnd(T* pointer, simt::Same<T> value) {
  return simt::read_modify_write(pointer, [value](T old) { return old & value; });
}
template <class T>
T atomicOr(T* pointer, simt::Same<T> value) {
  return simt::read_modify_write(pointer, [value](T old) { return old | value; });
}
template <class T>
T atomicXor(T* pointer, simt::Same<T> value) {
  return simt::read_modify_write(pointer, [value](T old) { return old ^ value; });
}
template <class T>
T atomicExch(T* pointer, simt::Same<T> value) {
  return simt::read_modify_write(pointer, [value](T) { return value; });
}
template <class T>
T atomicCAS(T* pointer, simt::Same<T> expected, simt::Same<T> value) {
  return simt::read_modify_write(pointer, [=](T old) { return old == expected ? value : old; });
}

// ---- loads and stores with cache hints ----
template <class T>
T __ldg(const T* pointer, simt::Source where = simt::Source::here()) {
  simt::require_constant(pointer, sizeof(T), where);
  return *pointer;
}
template <class T>
T __ldca(const T* pointer) {
  return *pointer;
}
template <class T>
T __ldcg(const T* pointer) {
  return *pointer;
}
template <class T>
T __ldcs(const T* pointer) {
  return *pointer;
}
template <class T>
T __ldlu(const T* pointer) {
  return *pointer;
}
template <class T>
void __stwb(T* pointer, simt::Same<T> value) {
  *pointer = value;
}
template <class T>
void __stcg(T* pointer, simt::Same<T> value) {
  *pointer = value;
}
template <class T>
void __stcs(T* pointer, simt::Same<T> value) {
  *pointer = value;
}
template <class T>
void __stwt(T* pointer, simt::Same<T> value) {
  *pointer = value;
}

// ---- bits ----
inline unsigned __float_as_uint(float x) {
  return std::bit_cast<unsigned>(x);
}
inline int __float_as_int(float x) {
  return std::bit_cast<int>(x);
}
inline float __uint_as_float(unsigned x) {
  return std::bit_cast<float>(x);
}
inline float __int_as_float(int x) {
  return std::bit_cast<float>(x);
}
inline long long __double_as_longlong(double x) {
  return std::bit_cast<long long>(x);
}
inline double __longlong_as_double(long long x) {
  return std::bit_cast<double>(x);
}
inline int __popc(unsigned x) {
  return std::popcount(x);
}
inline int __popcll(unsigned long long x) {
  return std::popcount(x);
}
inline int __clz(int x) {
  return std::countl_zero(static_cast<unsigned>(x));
}
inline int __clzll(long long x) {
  return std::countl_zero(static_cast<unsigned long long>(x));
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline int __ffsll(long long x) {
  return __builtin_ffsll(x);
}
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1) << (31 - i);
  return reversed;
}
// Byte i of the result is byte number (selector >> 4 i & 7) of the eight bytes low, high.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = uint64_t{high} << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return result;
}

// ---- arithmetic ----
// glibc declares names such as __expf for itself, with this linkage.
extern "C" {
inline float __expf(float x) noexcept {
  return expf(x);
}
inline float __exp10f(float x) noexcept {
  return powf(10.f, x);
}
inline float __logf(float x) noexcept {
  return logf(x);
}
inline float __log2f(float x) noexcept {
  return log2f(x);
}
inline float __log10f(float x) noexcept {
  return log10f(x);
}
inline float __powf(float x, float y) noexcept {
  return powf(x, y);
}
inline float __sinf(float x) noexcept {
  return sinf(x);
}
inline float __cosf(float x) noexcept {
  return cosf(x);
}
inline float __tanf(float x) noexcept {
  return tanf(x);
}
}
inline float rsqrtf(float x) {
  return 1.f / sqrtf(x);
}
inline double rsqrt(double x) {
  return 1. / sqrt(x);
}
inline float __fdividef(float x, float y) {
  return x / y;
}
inline float fdividef(float x, float y) {
  return x / y;
}
inline float __frcp_rn(float x) {
  return 1.f / x;
}
inline float __fsqrt_rn(float x) {
  return sqrtf(x);
}
inline float __frsqrt_rn(float x) {
  return static_cast<float>(1. / sqrt(static_cast<double>(x)));
}
inline float __fdiv_rn(float x, float y) {
  return x / y;
}
inline float __fmaf_rn(float x, float y, float z) {
  return fmaf(x, y, z);
}
inline float __saturatef(float x) {
  return x > 0.f ? (x < 1.f ? x : 1.f) : 0.f;
}
inline int __float2int_rn(float x) {
  return static_cast<int>(rintf(x));
}
inline int __float2int_rz(float x) {
  return static_cast<int>(x);
}
inline int __float2int_rd(float x) {
  return static_cast<int>(floorf(x));
}
inline int __float2int_ru(float x) {
  return static_cast<int>(ceilf(x));
}
inline float __int2float_rn(int x) {
  return static_cast<float>(x);
}
inline float __uint2float_rn(unsigned x) {
  return static_cast<float>(x);
}
inline int __mulhi(int x, int y) {
  return static_cast<int>(static_cast<long long>(x) * y >> 32);
}
inline unsigned __umulhi(unsigned x, unsigned y) {
  return static_cast<unsigned>(uint64_t{x} * y >> 32);
}

inline int min(int x, int y) {
  return x < y ? x : y;
}
inline int max(int x, int y) {
  return x > y ? x : y;
}
inline unsigned min(unsigned x, unsigned y) {
  return x < y ? x : y;
}
inline unsigned max(unsigned x, unsigned y) {
  return x > y ? x : y;
}
inline long min(long x, long y) {
  return x < y ? x : y;
}
inline long max(long x, long y) {
  return x > y ? x : y;
}
inline unsigned long min(unsigned long x, unsigned long y) {
  return x < y ? x : y;
}
inline unsigned long max(unsigned long x, unsigned long y) {
  return x > y ? x : y;
}
inline long long min(long long x, long long y) {
  return x < y ? x : y;
}
inline long long max(long long x, long long y) {
  return x > y ? x : y;
}
inline float min(float x, float y) {
  return fminf(x, y);
}
inline float max(float x, float y) {
  return fmaxf(x, y);
}
inline double min(double x, double y) {
  return fmin(x, y);
}
inline double max(double x, double y) {
  return fmax(x, y);
}
