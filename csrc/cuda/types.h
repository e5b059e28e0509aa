#pragma once
// What the launchers of csrc/cuda take: raw pointers, element types as values, streams. Any C++ compiler can call them.
#include <driver_types.h>  // cudaError_t, cudaStream_t

#include "core/view.h"

namespace xlstm::cuda {

using xlstm::Any;
using xlstm::AnyView;
using xlstm::Type;

// Memory for intermediate results, kept until the launches are made; from the stream-ordered allocator of the caller.
struct Allocator {
  void* (*allocate)(void* context, size_t bytes);
  void* context;

  // Null for no bytes.
  void* bytes(size_t count) const { return count ? allocate(context, count) : nullptr; }
  template <class T>
  T* get(int64_t count) const {
    return static_cast<T*>(allocate(context, static_cast<size_t>(count) * sizeof(T)));
  }
};

}  // namespace xlstm::cuda
