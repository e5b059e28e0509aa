#pragma once
// Torch-free descriptions of tensors that kernels take: a pointer and element strides.
#include <cstdint>

#if defined(__CUDACC__)
#define XLSTM_HOST_DEVICE __host__ __device__
#else
#define XLSTM_HOST_DEVICE
#endif

// After a switch over all values of an enum.
#if defined(_MSC_VER) && !defined(__CUDA_ARCH__)
#define XLSTM_UNREACHABLE __assume(0)
#else
#define XLSTM_UNREACHABLE __builtin_unreachable()
#endif

namespace xlstm {

// (batch, head, time[, feature]): the feature dimension, where there is one, has stride 1.
template <class T>
struct View {
  T* data = nullptr;
  int64_t batch = 0, head = 0, time = 0;  // strides in elements

  XLSTM_HOST_DEVICE T* at(int64_t b, int64_t h, int64_t t) const { return data + b * batch + h * head + t * time; }
  XLSTM_HOST_DEVICE explicit operator bool() const { return data != nullptr; }
};

// (batch, time, gate, head, feature): gate pre-activations of a recurrent cell; the feature dimension has stride 1.
template <class T>
struct GateView {
  T* data = nullptr;
  int64_t batch = 0, time = 0, gate = 0, head = 0;

  XLSTM_HOST_DEVICE T* at(int64_t b, int64_t t, int64_t g, int64_t h) const {
    return data + b * batch + t * time + g * gate + h * head;
  }
};

// (gate, head, out, in): recurrent weights, one matrix per gate and head; `out` or `in` has stride 1.
template <class T>
struct WeightView {
  T* data = nullptr;
  int64_t gate = 0, head = 0, out = 0, in = 0;

  XLSTM_HOST_DEVICE T* at(int64_t g, int64_t h) const { return data + g * gate + h * head; }
};

// (batch, time) flags; null where there are none.
struct Flags {
  const bool* data = nullptr;
  int64_t batch = 0, time = 0;

  XLSTM_HOST_DEVICE bool at(int64_t b, int64_t t) const { return data != nullptr && data[b * batch + t * time]; }
};

}  // namespace xlstm
