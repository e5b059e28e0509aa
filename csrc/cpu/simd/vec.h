#pragma once
// Portable vectors (GCC and Clang vector extensions). Every source that includes this is compiled once per SIMD level,
// into a namespace of its own, so that no function built for one level can be linked into another.
#include <cstdint>
#include <cstring>
#include <utility>

#ifndef XLSTM_SIMD_LEVEL
#error "compile with -DXLSTM_SIMD_LEVEL=<namespace>"
#endif

#define XLSTM_INLINE static inline __attribute__((always_inline))
#define XLSTM_INLINE_MEMBER inline __attribute__((always_inline))
#define XLSTM_UNROLL _Pragma("GCC unroll 16")
#define XLSTM_ROLLED _Pragma("GCC unroll 1")  // where copies of the body would not find enough registers

namespace xlstm::cpu::XLSTM_SIMD_LEVEL {

#if defined(__AVX512F__)
constexpr int kVecBytes = 64;
constexpr int kVecRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVecBytes = 32;
constexpr int kVecRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVecBytes = 16;
constexpr int kVecRegisters = 32;
#else
constexpr int kVecBytes = 16;
constexpr int kVecRegisters = 16;
#endif

template <class T>
struct IntOf;
template <>
struct IntOf<float> {
  using type = int32_t;
  using unsigned_type = uint32_t;
};
template <>
struct IntOf<double> {
  using type = int64_t;
  using unsigned_type = uint64_t;
};

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(kVecBytes)));
  // In memory: element-aligned, and allowed to alias T.
  typedef T unaligned __attribute__((vector_size(kVecBytes), aligned(sizeof(T)), may_alias));
  typedef typename IntOf<T>::type integer __attribute__((vector_size(kVecBytes)));
  typedef typename IntOf<T>::unsigned_type unsigned_integer __attribute__((vector_size(kVecBytes)));
};

template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
using IntVec = typename VecOf<T>::integer;
template <class T>
using UnsignedVec = typename VecOf<T>::unsigned_integer;
template <class T>
constexpr int kLanes = kVecBytes / static_cast<int>(sizeof(T));

template <class T>
XLSTM_INLINE Vec<T> splat(T x) {
  return x - Vec<T>{};  // x - 0, not x + 0: keeps the sign of -0
}

template <class T>
XLSTM_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VecOf<T>::unaligned*>(p);
}

template <class T>
XLSTM_INLINE void store(T* p, Vec<T> x) {
  *reinterpret_cast<typename VecOf<T>::unaligned*>(p) = x;
}

// Keeps x in a register: a compiler that sees few uses of a loaded vector would load it again for each of them.
template <class T>
XLSTM_INLINE void keep(Vec<T>& x) {
#if defined(__x86_64__)
  asm("" : "+v"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#else
  (void)x;
#endif
}

// Any address may be named: one that cannot be read is ignored.
XLSTM_INLINE void prefetch(const void* p) {
  __builtin_prefetch(p);
}

// The first n lanes; the others read as zero.
template <class T>
XLSTM_INLINE Vec<T> load_n(const T* p, int64_t n) {
  if (n >= kLanes<T>) return load(p);
  alignas(kVecBytes) T lanes[kLanes<T>] = {};
  for (int64_t j = 0; j < n; ++j) lanes[j] = p[j];
  return load(lanes);
}

template <class T>
XLSTM_INLINE void store_n(T* p, Vec<T> x, int64_t n) {
  if (n >= kLanes<T>) return store(p, x);
  alignas(kVecBytes) T lanes[kLanes<T>];
  store(lanes, x);
  for (int64_t j = 0; j < n; ++j) p[j] = lanes[j];
}

// A weight kept in 16 bits: the upper half of a float.
struct Bf16 {
  uint16_t bits;
};
struct HalfVecOf {
  typedef uint16_t type __attribute__((vector_size(kVecBytes / 2)));
  typedef uint16_t unaligned __attribute__((vector_size(kVecBytes / 2), aligned(2), may_alias));
};

// Weights of type W (T itself, or Bf16 for float) as a vector of T, and back where they fit W.
template <class T>
XLSTM_INLINE Vec<T> load_as(const T* p) {
  return load(p);
}
template <class T>
XLSTM_INLINE Vec<T> load_as(const Bf16* p) {
  const auto bits = *reinterpret_cast<const HalfVecOf::unaligned*>(p);
  return (Vec<T>)(__builtin_convertvector(bits, UnsignedVec<float>) << 16);
}
template <class T>
XLSTM_INLINE void store_as(T* p, Vec<T> x) {
  store(p, x);
}
template <class T>
XLSTM_INLINE void store_as(Bf16* p, Vec<T> x) {
  *reinterpret_cast<HalfVecOf::unaligned*>(p) = __builtin_convertvector((UnsignedVec<float>)x >> 16, HalfVecOf::type);
}

// Lane j of the result is lane kLane[j] of x.
template <class T, int... kLane>
XLSTM_INLINE Vec<T> shuffled(Vec<T> x) {
#if __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(x, x, kLane...);
#else
  return __builtin_shuffle(x, IntVec<T>{kLane...});
#endif
}

// The sum of the lanes, in pairs: half as many additions follow one another as a loop's would for four lanes, a quarter
// for sixteen.
template <class T, int kStep = kLanes<T> / 2>
XLSTM_INLINE T reduce_add(Vec<T> x) {
  const auto partners = [&]<int... kLane>(std::integer_sequence<int, kLane...>) {
    return shuffled<T, (kLane ^ kStep)...>(x);
  };
  x += partners(std::make_integer_sequence<int, kLanes<T>>{});
  if constexpr (kStep == 1)
    return x[0];
  else
    return reduce_add<T, kStep / 2>(x);
}

// x with every lane from n on set to zero.
template <class T>
XLSTM_INLINE Vec<T> first_lanes(Vec<T> x, int64_t n) {
  if (n >= kLanes<T>) return x;
  typename VecOf<T>::integer index;
  XLSTM_UNROLL
  for (int j = 0; j < kLanes<T>; ++j) index[j] = j;
  return index < static_cast<typename IntOf<T>::type>(n) ? x : Vec<T>{};
}

XLSTM_INLINE int64_t min_of(int64_t a, int64_t b) {
  return a < b ? a : b;
}
XLSTM_INLINE int64_t max_of(int64_t a, int64_t b) {
  return a > b ? a : b;
}
XLSTM_INLINE int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Hands out 64-byte aligned pieces of one buffer. Constructed without a buffer it only counts, so that the same code
// that places the pieces also says how much memory they need.
class Arena {
 public:
  explicit Arena(void* base = nullptr) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    T* piece = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return piece;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace xlstm::cpu::XLSTM_SIMD_LEVEL
