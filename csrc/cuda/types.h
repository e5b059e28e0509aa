#pragma once
// What the launchers of csrc/cuda take: raw pointers, element types as values, streams. Any C++ compiler can call them.
#include <driver_types.h>  // cudaError_t, cudaStream_t

#include "core/view.h"

namespace xlstm::cuda {

// The one table of element types, X(name, bytes, element) and LAST for its last row; CUDA's own elements are known in
// kernels only. No switch over an enum has a default: the compiler names the places that a new row leaves open.
#define XLSTM_TYPES(X, LAST) \
  X(bf16, 2, __nv_bfloat16)  \
  X(f16, 2, __half)          \
  X(f32, 4, float)           \
  LAST(f64, 8, double)

#define XLSTM_ENUMERATOR(name, bytes, element) name,
enum class Type { XLSTM_TYPES(XLSTM_ENUMERATOR, XLSTM_ENUMERATOR) };
#undef XLSTM_ENUMERATOR

#define XLSTM_BYTES(name, bytes, element) \
  if (type == Type::name) size = bytes;
XLSTM_HOST_DEVICE constexpr int bytes_of(Type type) {
  int size = 2;  // so that kernels compare a type with those alone that have more
  XLSTM_TYPES(XLSTM_BYTES, XLSTM_BYTES)
  return size;
}
#undef XLSTM_BYTES

// A tensor whose element type is known at run time.
struct Any {
  const void* data = nullptr;
  Type type = Type::f32;
};

// (batch, head, time[, feature]), strides in elements.
struct AnyView {
  const void* data = nullptr;
  Type type = Type::f32;
  int64_t batch = 0, head = 0, time = 0;

  XLSTM_HOST_DEVICE int64_t offset(int64_t b, int64_t h, int64_t t) const { return b * batch + h * head + t * time; }
};

}  // namespace xlstm::cuda
