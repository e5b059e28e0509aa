#pragma once
// Tensors as the op bodies handle them: memory, conversions, views. Only this folder knows torch (stable ABI, torch >=
// 2.11).
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "core/view.h"

namespace xlstm::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Shape = std::vector<int64_t>;

// Autograd is live in an op body: without this, conversions of an input that requires grad would be recorded.
class NoGrad {
 public:
  NoGrad() : before_(aoti_torch_grad_mode_is_enabled()) { aoti_torch_grad_mode_set_enabled(false); }
  ~NoGrad() { aoti_torch_grad_mode_set_enabled(before_); }
  NoGrad(const NoGrad&) = delete;

 private:
  bool before_;
};

// Raises the error of an allocator that had no room, in the words by which training tools tell that a smaller batch may
// help; torch's own error does not pass its C interface.
[[noreturn]] void out_of_memory(bool cpu, double bytes, const std::string& what);

Tensor empty(const Tensor& like, const Shape& shape, ScalarType dtype);

// The type of x's elements, as kernels name it.
Type type_of(const Tensor& x);

// x as dtype, last dimension contiguous; x itself where it already is.
Tensor as(const Tensor& x, ScalarType dtype);
Tensor as_contiguous(const Tensor& x, ScalarType dtype);
OptionalTensor as_contiguous(const OptionalTensor& x, ScalarType dtype);

// Writes y into x as an op does that only has x's memory: torch's own copy_ refuses a tensor made under inference_mode
// outside of it, and would do so after the op has changed other tensors.
void overwrite(const Tensor& x, const Tensor& y);

// Compute and state type: double for double tensors, else float.
inline ScalarType compute_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls f(T{}) with the compute type.
template <class F>
auto with_compute_type(ScalarType type, F f) {
  return type == ScalarType::Double ? f(double{}) : f(float{});
}

template <class T>
const T* pointer(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}
template <class T>
const T* pointer(const OptionalTensor& x) {
  return x ? pointer<T>(*x) : nullptr;
}
template <class T>
T* mutable_pointer(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

// Memory laid out as x, (B, H, S, D) or (B, H, S); (B, H, D) or (B, H) where it has no time.
template <class T>
ViewOf<T> view_of(const void* data, const Tensor& x, bool has_time = true) {
  const int64_t time = has_time ? x.stride(2) : 0;
  if constexpr (std::is_void_v<T>)
    return {data, type_of(x), x.stride(0), x.stride(1), time};
  else
    return {static_cast<T*>(const_cast<void*>(data)), x.stride(0), x.stride(1), time};
}

// An output that a kernel computes in `computed_type`, and the caller gets as it is given here.
class Output {
 public:
  Output(const Tensor& result, ScalarType computed_type);
  const Tensor& computed() const { return computed_; }
  Tensor result() const;

 private:
  Tensor result_, computed_;
};

}  // namespace xlstm::ops
