#pragma once
// Global memory shared between blocks of a running grid, and accesses of 16 bytes: whole, or that leave the caches to
// others.
#include "cuda/device/platform.h"

namespace xlstm::device {

#if XLSTM_SIMT
// Not instrumented: to the race detector these are atomic accesses. A load lets other threads run, as it may poll.
template <class T>
__attribute__((no_sanitize("thread"), noinline)) T simt_load(const T* pointer, Source where) {
  simt::check_live(where);
  simt::touch(pointer, sizeof(T), simt::Access::atomic_load, __builtin_return_address(0));
  T value;
  memcpy(&value, pointer, sizeof value);
  return value;
}
template <class T>
__attribute__((no_sanitize("thread"), noinline)) void simt_store(T* pointer, T value) {
  simt::touch(pointer, sizeof(T), simt::Access::atomic_store, __builtin_return_address(0));
  memcpy(pointer, &value, sizeof value);
}
#endif

// ---- 4 or 8 bytes; whole and relaxed also 16: four words, each on its own ----
#if !XLSTM_SIMT
#define XLSTM_LOAD(semantics)                                                                  \
  if constexpr (sizeof(T) == 4) {                                                              \
    uint32_t r;                                                                                \
    asm volatile("ld." semantics ".global.b32 %0, [%1];" : "=r"(r) : "l"(pointer) : "memory"); \
    return bits_as<T>(r);                                                                      \
  } else if constexpr (sizeof(T) == 8) {                                                       \
    uint64_t r;                                                                                \
    asm volatile("ld." semantics ".global.b64 %0, [%1];" : "=l"(r) : "l"(pointer) : "memory"); \
    return bits_as<T>(r);                                                                      \
  } else {                                                                                     \
    uint4 r;                                                                                   \
    asm volatile("ld." semantics ".global.v4.b32 {%0, %1, %2, %3}, [%4];"                      \
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)                                  \
                 : "l"(pointer)                                                                \
                 : "memory");                                                                  \
    return bits_as<T>(r);                                                                      \
  }
#define XLSTM_STORE(semantics)                                                                                      \
  if constexpr (sizeof(T) == 4) {                                                                                   \
    asm volatile("st." semantics ".global.b32 [%0], %1;" ::"l"(pointer), "r"(bits_as<uint32_t>(value)) : "memory"); \
  } else if constexpr (sizeof(T) == 8) {                                                                            \
    asm volatile("st." semantics ".global.b64 [%0], %1;" ::"l"(pointer), "l"(bits_as<uint64_t>(value)) : "memory"); \
  } else {                                                                                                          \
    const uint4 r = bits_as<uint4>(value);                                                                          \
    asm volatile("st." semantics ".global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(pointer), "r"(r.x), "r"(r.y),       \
                 "r"(r.z), "r"(r.w)                                                                                 \
                 : "memory");                                                                                       \
  }
#endif

// As C++ does it, but in one access: nvcc splits it where another branch has one for each element.
template <class T>
XLSTM_DEVICE T load_whole(const T* pointer) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
#if XLSTM_SIMT
  return *pointer;
#else
  XLSTM_LOAD("weak")
#endif
}

template <class T>
XLSTM_DEVICE void store_whole(T* pointer, const T& value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
#if XLSTM_SIMT
  *pointer = value;
#else
  XLSTM_STORE("weak")
#endif
}

// As the compiler's volatile: no ordering, but every access happens.
template <class T>
XLSTM_DEVICE T load_volatile(const T* pointer, [[maybe_unused]] Source where = Source::here()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
#if XLSTM_SIMT
  return simt_load(pointer, where);
#else
  XLSTM_LOAD("volatile")
#endif
}

template <class T>
XLSTM_DEVICE void store_volatile(T* pointer, T value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
#if XLSTM_SIMT
  simt_store(pointer, value);
#else
  XLSTM_STORE("volatile")
#endif
}

template <class T>
XLSTM_DEVICE T load_relaxed(const T* pointer, [[maybe_unused]] Source where = Source::here()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
#if XLSTM_SIMT
  return simt_load(pointer, where);
#else
  XLSTM_LOAD("relaxed.gpu")
#endif
}

template <class T>
XLSTM_DEVICE void store_relaxed(T* pointer, T value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
#if XLSTM_SIMT
  simt_store(pointer, value);
#else
  XLSTM_STORE("relaxed.gpu")
#endif
}

// Sees everything that happened before the store_release whose value it reads.
template <class T>
XLSTM_DEVICE T load_acquire(const T* pointer, [[maybe_unused]] Source where = Source::here()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
#if XLSTM_SIMT
  const T value = simt_load(pointer, where);
  simt::acquire(pointer);
  return value;
#else
  XLSTM_LOAD("acquire.gpu")
#endif
}

template <class T>
XLSTM_DEVICE void store_release(T* pointer, T value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
#if XLSTM_SIMT
  simt::release_to(pointer);
  simt_store(pointer, value);
#else
  XLSTM_STORE("release.gpu")
#endif
}

#if !XLSTM_SIMT
#undef XLSTM_LOAD
#undef XLSTM_STORE
#endif

// Counts arrivals of blocks: returns the value before, publishes this thread's writes, sees those of earlier callers.
XLSTM_DEVICE uint32_t atomic_add_acq_rel(uint32_t* pointer, uint32_t value) {
#if XLSTM_SIMT
  simt::release_to(pointer);
  const uint32_t old = atomicAdd(pointer, value);
  simt::acquire(pointer);
  return old;
#else
  uint32_t old;
  asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;" : "=r"(old) : "l"(pointer), "r"(value) : "memory");
  return old;
#endif
}

// ---- 16 bytes, read or written once: first to leave the caches ----
template <class T>
XLSTM_DEVICE T load_streaming(const T* pointer) {
  static_assert(sizeof(T) == 16);
  return bits_as<T>(__ldcs(reinterpret_cast<const uint4*>(pointer)));
}

template <class T>
XLSTM_DEVICE void store_streaming(T* pointer, const T& value) {
  static_assert(sizeof(T) == 16);
  __stcs(reinterpret_cast<uint4*>(pointer), bits_as<uint4>(value));
}

// ---- 16 bytes through L2 only: what other blocks wrote while this one runs ----
template <class T>
XLSTM_DEVICE T load_l2(const T* pointer) {
  static_assert(sizeof(T) == 16);
  return bits_as<T>(__ldcg(reinterpret_cast<const uint4*>(pointer)));
}

template <class T>
XLSTM_DEVICE void store_l2(T* pointer, const T& value) {
  static_assert(sizeof(T) == 16);
  __stcg(reinterpret_cast<uint4*>(pointer), bits_as<uint4>(value));
}

}  // namespace xlstm::device
