#pragma once
// What the launchers of csrc/cuda take: raw pointers, element types as values, streams. Any C++ compiler can call them.
#include <driver_types.h>  // cudaError_t, cudaStream_t

#include "core/view.h"

namespace xlstm::cuda {

enum class Type { bf16, f16, f32, f64 };

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
