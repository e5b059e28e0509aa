#pragma once
// Elements whose type is known at run time: for data that a kernel touches once, where an instance per type is too
// much.
#include "cuda/device/platform.h"
#include "cuda/device/vector.h"
#include "cuda/types.h"

namespace xlstm::device {

// f<element>() for a type known at run time; from host code f may call host functions. The last type is compared with
// nothing: told that there is no fifth, ptxas (13.0) spills in a kernel of sm_120.
#pragma nv_exec_check_disable
template <class F>
XLSTM_HOST_DEVICE __forceinline__ decltype(auto) with_type(cuda::Type type, F f) {
#define XLSTM_IF(name, bytes, element) \
  if (type == cuda::Type::name) return f.template operator()<element>();
#define XLSTM_ELSE(name, bytes, element) return f.template operator()<element>();
  XLSTM_TYPES(XLSTM_IF, XLSTM_ELSE)
#undef XLSTM_IF
#undef XLSTM_ELSE
}

// Element `index`, as float or double.
template <class A>
XLSTM_DEVICE A load_any(const void* data, cuda::Type type, int64_t index) {
  return with_type(type, [&]<class T>() { return widen<A>(static_cast<const T*>(data)[index]); });
}

template <class T, class A, int kCount>
XLSTM_DEVICE void load_elements_of(A (&to)[kCount], const void* data, int64_t index, int64_t stride) {
  T values[kCount];
#pragma unroll
  for (int n = 0; n < kCount; ++n) values[n] = static_cast<const T*>(data)[index + n * stride];
#pragma unroll
  for (int n = 0; n < kCount; ++n) to[n] = widen<A>(values[n]);
}

// Several elements, all loads in flight at once.
template <class A, int kCount>
XLSTM_DEVICE void load_any(A (&to)[kCount], const void* data, cuda::Type type, int64_t index, int64_t stride) {
  with_type(type, [&]<class T>() { load_elements_of<T>(to, data, index, stride); });
}

template <class A>
XLSTM_DEVICE void store_any(void* data, cuda::Type type, int64_t index, A value) {
  with_type(type, [&]<class T>() { static_cast<T*>(data)[index] = narrow<T>(value); });
}

}  // namespace xlstm::device
