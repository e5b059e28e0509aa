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

// The one table of element types, X(name, bytes, element); CUDA's own elements are known in kernels only. No switch
// over an enum has a default: the compiler names the places that a new row leaves open.
#define XLSTM_TYPES(X)      \
  X(bf16, 2, __nv_bfloat16) \
  X(f16, 2, __half)         \
  X(f32, 4, float)          \
  X(f64, 8, double)

#define XLSTM_ENUMERATOR(name, bytes, element) name,
enum class Type { XLSTM_TYPES(XLSTM_ENUMERATOR) };
#undef XLSTM_ENUMERATOR

#define XLSTM_BYTES(name, bytes, element) type == Type::name ? bytes:
XLSTM_HOST_DEVICE constexpr int bytes_of(Type type) {
  return XLSTM_TYPES(XLSTM_BYTES) 0;
}
#undef XLSTM_BYTES

// (batch, head, time[, feature]): the feature dimension, where there is one, has stride 1.
template <class T>
struct View {
  T* data = nullptr;
  int64_t batch = 0, head = 0, time = 0;  // strides in elements

  XLSTM_HOST_DEVICE T* at(int64_t b, int64_t h, int64_t t) const { return data + b * batch + h * head + t * time; }
  XLSTM_HOST_DEVICE explicit operator bool() const { return data != nullptr; }
};

// The same with elements of a type that is known at run time.
struct AnyView {
  const void* data = nullptr;
  Type type = Type::f32;
  int64_t batch = 0, head = 0, time = 0;

  XLSTM_HOST_DEVICE int64_t offset(int64_t b, int64_t h, int64_t t) const { return b * batch + h * head + t * time; }
};

// Elements in a row, of a type that is known at run time.
struct Any {
  const void* data = nullptr;
  Type type = Type::f32;
};

// How the parameters of a kernel hold tensors of T. T = void: each of them says its type.
template <class T>
struct Holds {
  using View = xlstm::View<T>;
  using Pointer = T*;
};
template <>
struct Holds<void> {
  using View = AnyView;
  using Pointer = Any;
};
template <>
struct Holds<const void> : Holds<void> {};
template <class T>
using ViewOf = typename Holds<T>::View;
template <class T>
using PointerOf = typename Holds<T>::Pointer;

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
