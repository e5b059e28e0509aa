#pragma once
// Elements whose type is known at run time: for data that a kernel touches once, where an instance per type is too
// much.
#include "cuda/device/platform.h"
#include "cuda/device/vector.h"
#include "cuda/types.h"

namespace xlstm::device {

// Element `index`, as float or double.
template <class A>
XLSTM_DEVICE A load_any(const void* data, cuda::Type type, int64_t index) {
  switch (type) {
    case cuda::Type::bf16:
      return static_cast<A>(__bfloat162float(static_cast<const __nv_bfloat16*>(data)[index]));
    case cuda::Type::f16:
      return static_cast<A>(__half2float(static_cast<const __half*>(data)[index]));
    case cuda::Type::f32:
      return static_cast<A>(static_cast<const float*>(data)[index]);
    default:
      return static_cast<A>(static_cast<const double*>(data)[index]);
  }
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
  switch (type) {
    case cuda::Type::bf16:
      return load_elements_of<__nv_bfloat16>(to, data, index, stride);
    case cuda::Type::f16:
      return load_elements_of<__half>(to, data, index, stride);
    case cuda::Type::f32:
      return load_elements_of<float>(to, data, index, stride);
    default:
      return load_elements_of<double>(to, data, index, stride);
  }
}

template <class A>
XLSTM_DEVICE void store_any(void* data, cuda::Type type, int64_t index, A value) {
  switch (type) {
    case cuda::Type::bf16:
      static_cast<__nv_bfloat16*>(data)[index] = __float2bfloat16(static_cast<float>(value));
      break;
    case cuda::Type::f16:
      static_cast<__half*>(data)[index] = __float2half(static_cast<float>(value));
      break;
    case cuda::Type::f32:
      static_cast<float*>(data)[index] = static_cast<float>(value);
      break;
    default:
      static_cast<double*>(data)[index] = static_cast<double>(value);
  }
}

}  // namespace xlstm::device
