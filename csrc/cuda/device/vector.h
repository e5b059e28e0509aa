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

// 16 bytes of elements.
template <class T>
struct alignas(16) Vector {
  static constexpr int kCount = 16 / sizeof(T);
  T x[kCount];
};

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
