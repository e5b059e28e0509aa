#pragma once
// Elements of a tensor in the type of the arithmetic (float or double) and back, and several of them in one access.
#include "cuda/device/platform.h"

namespace xlstm::device {

template <class A, class T>
XLSTM_DEVICE A widen(T x) {
  if constexpr (sizeof(T) > 2) {
    return static_cast<A>(x);
  } else {
    return static_cast<A>(static_cast<float>(x));
  }
}

// To nearest even.
template <class T, class A>
XLSTM_DEVICE T narrow(A x) {
  if constexpr (sizeof(T) > 2) {
    return static_cast<T>(x);
  } else {
    return T(static_cast<float>(x));
  }
}

// Elements that one access can read or write: 4, 8 or 16 bytes.
template <class T, int kElements>
struct alignas(sizeof(T) * kElements) Pack {
  static constexpr int kCount = kElements;
  T x[kCount];
};

// Whether a pack can be read or written there at once.
template <class P>
XLSTM_DEVICE bool aligned_for(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % sizeof(P) == 0;
}

// Two neighbours, to nearest even.
template <class T, class A>
XLSTM_DEVICE Pack<T, 2> narrow_two(A x, A y) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return bits_as<Pack<T, 2>>(__floats2bfloat162_rn(static_cast<float>(x), static_cast<float>(y)));
  } else if constexpr (sizeof(T) == 2) {
    return bits_as<Pack<T, 2>>(__floats2half2_rn(static_cast<float>(x), static_cast<float>(y)));
  } else {
    return {narrow<T>(x), narrow<T>(y)};
  }
}

// 16 bytes of elements.
template <class T>
using Vector = Pack<T, 16 / sizeof(T)>;

// From a multiple of 16 bytes.
template <class T>
XLSTM_DEVICE Vector<T> load_vector(const T* from) {
  const uint4 bits = *reinterpret_cast<const uint4*>(from);  // a copy: through a reference it would be loaded in bytes
  return bits_as<Vector<T>>(bits);
}

// One by one: the first `count` elements from `from` on, zeros past them.
template <class T>
XLSTM_DEVICE Vector<T> load_elements(const T* from, int64_t count) {
  Vector<T> v;
#pragma unroll
  for (int c = 0; c < Vector<T>::kCount; ++c) v.x[c] = c < count ? from[c] : T{};
  return v;
}

}  // namespace xlstm::device
